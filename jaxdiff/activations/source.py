"""Where a trainer gets its activations from: one interface, and its form for a store."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from jaxdiff.activations._deal import Dealer, Window
from jaxdiff.activations._lanes import Lanes
from jaxdiff.activations.files import COLUMNS
from jaxdiff.activations.int8 import Quantised
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
        lanes: Streams that the blocks are dealt out to, with a part of the window and of each
            batch each; with the seed, they decide the order of rows.
        parts: Which parts of each batch this process gets: the indices of its devices along the
            data axis, and that axis's size (`mesh.data_parts`). Processes with the same index get
            the same rows.

    Raises:
        JaxdiffError: If the store has no usable rows, or fewer blocks than lanes.
    """

    def __init__(
        self,
        store: Store,
        *,
        window: int = 16,
        lanes: int = 1,
        parts: tuple[tuple[int, ...], int] = ((0,), 1),
    ):
        if store.masked >= store.rows:
            raise JaxdiffError("the store has no usable rows: all are masked", where=store.folder)
        if len(store.blocks) < lanes:
            raise JaxdiffError(
                f"{len(store.blocks)} chunks cannot be shared by {lanes} lanes",
                where=store.folder,
                fix="harvest with a smaller harvest.chunk",
            )
        self.store = store
        self.shape = store.shape
        self.normalization = store.normalization
        self._window = max(window // lanes, 1)
        self._lanes = lanes
        self._parts = parts

    def batches(self, batch: int, *, seed: int, epochs: int | None = None) -> Lanes:
        """Yields shuffled batches; this process's part of each (see `ActivationSource`).

        Raises:
            ValueError: If `batch` cannot be split over the parts or the lanes.
        """
        indices, count = self._parts
        for parts, what in ((count, "parts"), (self._lanes, "lanes")):
            if batch % parts:
                raise ValueError(f"a batch of {batch} rows cannot be split into {parts} {what}")
        each = batch // self._lanes
        wanted = np.arange(batch).reshape(count, -1)[list(indices)].ravel()
        needed, place = np.unique(wanted // each, return_inverse=True)
        limit = None
        if epochs is not None and self._lanes > 1:
            limit = min(self._usable(seed, i, epochs) for i in range(self._lanes)) // each
        rows = place * each + wanted % each
        whole = len(rows) == len(needed) * each and bool(np.all(np.diff(rows) == 1))
        lanes = {int(i): self._lane(int(i), each, limit, seed, epochs) for i in needed}
        return Lanes(lanes, None if whole else rows)

    def _lane(self, lane: int, batch: int, limit: int | None, seed: int, epochs) -> Dealer:
        windows = self._windows(seed, lane, epochs).map_with_index(
            lambda i, blocks: _read_window(self.store, blocks, (seed, lane, i))
        )
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        return Dealer(iter(windows.to_iter_dataset(options)), batch, limit)

    def in_order(self) -> Iterator[ActivationBatch]:
        """Yields all rows, masked ones too, once and in document order."""
        return self.store.in_order()

    def _windows(self, seed: int, lane: int, epochs: int | None) -> Any:
        """Returns the Grain dataset of one lane's windows: lists of block numbers."""
        blocks = grain.MapDataset.range(len(self.store.blocks)).seed(seed % 2**32).shuffle()
        blocks = blocks[lane :: self._lanes]
        # Repeated after they are put together, so that no window spans two epochs.
        return blocks.batch(self._window, batch_fn=list).repeat(epochs)

    def _usable(self, seed: int, lane: int, epochs: int) -> int:
        """Returns the usable rows of one lane in all epochs."""
        starts = np.array([start for start, _ in self.store.blocks])
        usable = np.add.reduceat(self.store.column("mask").astype(np.int64), starts)
        windows = self._windows(seed, lane, epochs)
        return int(sum(usable[windows[i]].sum() for i in range(len(windows))))


def _read_window(store: Store, blocks: list[int], seed: tuple[int, ...]) -> Window:
    """Reads blocks and decides the order in which their usable rows are dealt out."""
    ranges = [store.blocks[block] for block in blocks]
    size = sum(stop - start for start, stop in ranges)
    x = np.empty((size, *store.shape), store.stored)
    scales = np.empty((size, store.shape[0]), np.float32)
    row, parts = 0, []
    for start, stop in ranges:
        span = slice(row, row + stop - start)
        x[span], scale = store.read_stored(start, stop)
        if scale is not None:
            scales[span] = scale
        parts.append(np.arange(start, stop))
        row = span.stop
    where = np.concatenate(parts)
    usable = np.flatnonzero(store.column("mask")[where])
    order = np.random.default_rng(seed).permutation(usable)
    columns = {name: store.column(name)[where] for name in COLUMNS}
    if store.stored != np.int8:
        return Window(ActivationBatch(x=x, **columns), order)
    known = ActivationBatch(x=np.empty((size, store.shape[0], 0), np.float32), **columns)
    return Window(Quantised(x, scales, known), order)
