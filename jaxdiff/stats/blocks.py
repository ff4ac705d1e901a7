"""Cutting activations into blocks of one size, as the compiled pass needs them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from jaxdiff.types import ActivationBatch


@runtime_checkable
class Rows(Protocol):
    """Activations that can be read by row number; a `Store` is one."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    def read(self, start: int, stop: int) -> ActivationBatch:
        """Returns rows [start, stop)."""
        ...


@dataclass(frozen=True)
class InMemory:
    """`Rows` over activations that are in memory already.

    Attributes:
        batch: All of them.
        rows: How many.
    """

    batch: ActivationBatch
    rows: int

    @staticmethod
    def of(batch: ActivationBatch) -> "InMemory":
        """Wraps a batch of any size."""
        return InMemory(jax.tree.map(np.asarray, batch), len(batch.mask))

    def read(self, start: int, stop: int) -> ActivationBatch:
        """Returns rows [start, stop) without copying."""
        return jax.tree.map(lambda a: a[start:stop], self.batch)


def blocks(rows: Rows, size: int) -> Iterator[ActivationBatch]:
    """Yields all rows in order, `size` at a time; the last block is filled with `pad`."""
    for start in range(0, rows.rows, size):
        yield pad(rows.read(start, min(start + size, rows.rows)), size)


def pad(batch: ActivationBatch, rows: int) -> ActivationBatch:
    """Appends rows with mask False until there are `rows`."""
    missing = rows - len(batch.mask)
    if missing == 0:
        return batch
    grow = lambda a: np.concatenate([a, np.zeros((missing, *a.shape[1:]), a.dtype)])  # noqa: E731
    return jax.tree.map(lambda a: grow(np.asarray(a)), batch)
