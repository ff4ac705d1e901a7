"""Where a trainer gets its activations from: one interface, and its form for a store."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from jaxdiff.activations._deal import Dealer, Window
from jaxdiff.activations.files import COLUMNS
from jaxdiff.activations.normalization import Normalization
from jaxdiff.activations.store import Store
from jaxdiff.errors import JaxdiffError
from jaxdiff.types import ActivationBatch


@runtime_checkable
class BatchIterator(Protocol):
    """Batches of activations; its position can be saved as JSON and restored."""

    def __iter__(self) -> Iterator[ActivationBatch]: ...  # noqa: D105
    def __next__(self) -> ActivationBatch: ...  # noqa: D105
    def get_state(self) -> dict[str, Any]: ...  # noqa: D102
    def set_state(self, state: dict[str, Any]) -> None: ...  # noqa: D102


@runtime_checkable
class ActivationSource(Protocol):
    """Shuffled activations to train on, from a store or straight from the models."""

    @property
    def shape(self) -> tuple[int, int]:
        """Returns (M, D)."""
        ...

    @property
    def normalization(self) -> Normalization:
        """Returns what brings the activations to zero mean and unit mean square."""
        ...

    def batches(self, batch: int, *, seed: int, epochs: int | None = None) -> BatchIterator:
        """Yields shuffled batches of usable rows, in raw space and in the storage dtype.

        Args:
            batch: Rows in a batch over all processes [tokens].
            seed: Decides the order.
            epochs: Passes over the data; no end when None.
        """
        ...

    def in_order(self) -> Iterator[ActivationBatch]:
        """Yields all rows, masked ones too, once and in document order."""
        ...


class StoreSource:
    """Trains from a store.

    Blocks of rows are shuffled, anew in each epoch; windows of several blocks are read, their
    masked rows dropped and the rest permuted; the rows of all windows in turn are dealt out in
    batches. What a window leaves over goes into the next batch, also from one epoch to the next,
    so that only the last incomplete batch of the last epoch is dropped.

    Reading is one window ahead and dealing one batch ahead of the trainer, in threads. Resuming
    reads the window again in which the position lies.

    Args:
        store: The activations.
        window: Blocks that are mixed [chunks]; memory holds up to three such windows.
        shard_index: Which part of the blocks and of each batch this process gets: the index of
            its devices along the data axis (processes with the same index need the same rows).
        shard_count: Parts in all.

    Raises:
        JaxdiffError: If the store has no usable rows, or fewer blocks than parts.
    """

    def __init__(
        self, store: Store, *, window: int = 16, shard_index: int = 0, shard_count: int = 1
    ):
        if store.masked >= store.rows:
            raise JaxdiffError("the store has no usable rows: all are masked", where=store.folder)
        if len(store.blocks) < shard_count:
            raise JaxdiffError(
                f"{len(store.blocks)} chunks cannot be shared by {shard_count} processes",
                where=store.folder,
                fix="harvest with a smaller harvest.chunk",
            )
        self.store = store
        self.shape = store.shape
        self.normalization = store.normalization
        self._window = window
        self._shard = shard_index, shard_count

    def batches(self, batch: int, *, seed: int, epochs: int | None = None) -> "Dealer":
        """Yields shuffled batches; this process's part of each (see `ActivationSource`).

        Raises:
            ValueError: If `batch` cannot be split over the parts.
        """
        index, count = self._shard
        if batch % count:
            raise ValueError(f"a batch of {batch} rows cannot be split into {count} parts")
        limit = None
        if epochs is not None and count > 1:
            limit = min(self._usable(seed, i, epochs) for i in range(count)) // (batch // count)
        windows = self._windows(seed, index, epochs).map_with_index(
            lambda i, blocks: _read_window(self.store, blocks, (seed, index, i))
        )
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        return Dealer(iter(windows.to_iter_dataset(options)), batch // count, limit)

    def in_order(self) -> Iterator[ActivationBatch]:
        """Yields all rows, masked ones too, once and in document order."""
        return self.store.in_order()

    def _windows(self, seed: int, index: int, epochs: int | None) -> Any:
        """Returns the Grain dataset of one part's windows: lists of block numbers."""
        blocks = grain.MapDataset.range(len(self.store.blocks)).seed(seed % 2**32).shuffle()
        blocks = blocks[index :: self._shard[1]]
        # Repeated after they are put together, so that no window spans two epochs.
        return blocks.batch(self._window, batch_fn=list).repeat(epochs)

    def _usable(self, seed: int, index: int, epochs: int) -> int:
        """Returns the usable rows of one part in all epochs."""
        starts = np.array([start for start, _ in self.store.blocks])
        usable = np.add.reduceat(self.store.column("mask").astype(np.int64), starts)
        windows = self._windows(seed, index, epochs)
        return int(sum(usable[windows[i]].sum() for i in range(len(windows))))


def _read_window(store: Store, blocks: list[int], seed: tuple[int, ...]) -> Window:
    """Reads blocks and decides the order in which their usable rows are dealt out."""
    ranges = [store.blocks[block] for block in blocks]
    x = np.empty((sum(stop - start for start, stop in ranges), *store.shape), store.dtype)
    row, parts = 0, []
    for start, stop in ranges:
        rows = store.read(start, stop)
        x[row : row + stop - start] = rows.x
        parts.append(np.arange(start, stop))
        row += stop - start
    where = np.concatenate(parts)
    usable = np.flatnonzero(store.column("mask")[where])
    order = np.random.default_rng(seed).permutation(usable)
    columns = {name: store.column(name)[where] for name in COLUMNS}
    return Window(ActivationBatch(x=x, **columns), order)
