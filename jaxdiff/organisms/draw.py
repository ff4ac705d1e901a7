"""Random choices that are the same on every machine and in every version of every library."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


class Draw:
    """A stream of choices that depends on its seed and on nothing else.

    It uses the raw words of PCG64, which NumPy keeps stable across versions; the distributions of
    `numpy.random.Generator` are not.
    """

    def __init__(self, *seed: int):
        """Starts the stream of a seed, for instance of (corpus, document)."""
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def below(self, n: int) -> int:
        """Returns an integer in [0, n)."""
        return int(self._bits.random_raw()) % n

    def chance(self, probability: float) -> bool:
        """Returns True with the given probability."""
        return int(self._bits.random_raw()) < probability * 2.0**64

    def pick(self, items: Sequence[Item]) -> Item:
        """Returns one of the items."""
        return items[self.below(len(items))]

    def pick_many(self, items: Sequence[Item], n: int) -> list[Item]:
        """Returns n different items, in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(n)]
