"""What the second model has more than the first, as activations of one source: for a diff-SAE."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxdiff.activations._devices import everywhere, merge_processes
from jaxdiff.activations.normalization import Moments
from jaxdiff.activations.source import ActivationSource, BatchIterator
from jaxdiff.activations.stream import StreamSource
from jaxdiff.dictionaries.normalization import Normalization
from jaxdiff.errors import JaxdiffError
from jaxdiff.types import BASE, FT, ActivationBatch

_ROWS = 1_000_000


def difference(batch: ActivationBatch) -> ActivationBatch:
    """Returns a batch whose activations are those of the fine-tuned model minus the base's.

    They are float32: of two bfloat16 numbers that are close, little would be left otherwise.
    """
    x = np.asarray(batch.x).astype(np.float32)
    return dataclasses.replace(batch, x=x[:, FT : FT + 1] - x[:, BASE : BASE + 1])


class DifferenceSource:
    """A source of differences, to train a dictionary on as on any other source.

    A dictionary of them has one model. Its normalisation is its own: the mean and scale of the
    first usable rows' differences, which are read once for it; the identity where that of the
    activations is.

    Args:
        source: Activations of two models at one site.
        rows: Rows that the normalisation is measured on, at least, or all there are [tokens]; where
            several processes stream, of each.

    Raises:
        JaxdiffError: If the source is not of two models.
    """

    def __init__(self, source: ActivationSource, *, rows: int = _ROWS):
        sources, width = source.shape
        if sources != 2:
            raise JaxdiffError(
                f"a difference needs activations of two models at one site, these are of {sources} "
                "sources",
                where="dictionary.difference",
            )
        self.shape = (1, width)
        self._source, self._rows = source, rows
        self._normalization: Normalization | None = None

    @property
    def normalization(self) -> Normalization:
        """Returns what brings the differences to zero mean and unit mean square."""
        if self._normalization is None:
            self._normalization = self._measure()
        return self._normalization

    def batches(self, batch: int, *, seed: int, epochs: int | None = None) -> "_Differences":
        """Yields shuffled batches, those of the activations' source."""
        return _Differences(self._source.batches(batch, seed=seed, epochs=epochs))

    def in_order(self) -> Iterator[ActivationBatch]:
        """Yields all rows, masked ones too, once and in document order."""
        return map(difference, self._source.in_order())

    def _measure(self) -> Normalization:
        given = self._source.normalization
        if not np.any(given.mean) and np.all(np.asarray(given.scale) == 1):
            return Normalization.identity(self.shape)
        # Several processes that stream have rows of their own; from a store, all read all.
        lockstep = isinstance(self._source, StreamSource) and self._source.lockstep
        moments = Moments.zeros(self.shape)
        for batch in self.in_order():
            new = Moments.of(np.asarray(batch.x), np.asarray(batch.mask))
            count = np.array([float(new.count)])
            moments = moments.merge(count, new.mean[None], new.m2[None])
            if everywhere(moments.count >= self._rows, lockstep):
                break
        return (merge_processes(moments) if lockstep else moments).normalization()


class _Differences:
    """The differences of another iterator's batches; its position is the other's."""

    def __init__(self, batches: BatchIterator):
        self._batches = batches
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self

    def __next__(self) -> ActivationBatch:
        return difference(next(self._batches))
