"""Activations that are already in memory, in the form that `write_store` takes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxdiff.activations.normalization import Moments
from jaxdiff.types import ActivationBatch


class Recorded:
    """An iterator over activations computed elsewhere, in document order, as a harvest yields them.

    Args:
        batches: The activations; all batches of one shape [M, D].
        site: What the store says about where they are from.
    """

    median_norm: tuple[float, ...] | None = None

    def __init__(self, batches: Sequence[ActivationBatch], *, site: str):
        self.site = site
        self.shape: tuple[int, int] = (batches[0].x.shape[1], batches[0].x.shape[2])
        self.moments = Moments.zeros(self.shape)
        self._batches = batches
        self._next = 0

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self

    def __next__(self) -> ActivationBatch:
        if self._next >= len(self._batches):
            raise StopIteration
        batch = self._batches[self._next]
        self._next += 1
        new = Moments.of(np.asarray(batch.x), np.asarray(batch.mask))
        self.moments = self.moments.merge(
            np.array([float(new.count)]), new.mean[None], new.m2[None]
        )
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch yielded, as JSON."""
        return {"next": self._next, "moments": self.moments.to_json()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` returned."""
        self._next = state["next"]
        self.moments = Moments.from_json(state["moments"])
