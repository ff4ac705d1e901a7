"""The shuffle ring of stream mode."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxdiff.activations._deal import Window
from jaxdiff.activations._devices import everywhere
from jaxdiff.activations._harvest import Harvest
from jaxdiff.activations.normalization import Moments
from jaxdiff.activations.rows import concatenate
from jaxdiff.errors import JaxdiffError
from jaxdiff.types import ActivationBatch


class Feed:
    """Usable rows in document order, epoch after epoch.

    Attributes:
        epoch: Epoch of the last rows.
        ended: True after the last row of the last epoch.
    """

    def __init__(self, start: Callable[[], Harvest], epochs: int | None):
        self.ended = False
        self._start = start
        self._epochs = epochs
        self.epoch = 0
        self._rows = start()
        self._usable = False

    def __next__(self) -> ActivationBatch | None:
        """Returns the usable rows of the next batch of text; None when the last epoch is over."""
        rows = next(self._rows, None)
        if rows is not None:
            self._usable |= bool(rows.mask.any())
            return jax.tree.map(lambda a: a[rows.mask], rows)
        if not self._usable:
            raise JaxdiffError("the text gives no usable activations: all are masked")
        self.epoch, self._usable = self.epoch + 1, False
        if self.epoch == self._epochs:
            self.ended = True
            return None
        self._rows = self._start()
        return next(self)

    def get_state(self) -> dict[str, Any]:
        """Returns the position as JSON."""
        return {"epoch": self.epoch, "text": self._rows.get_state()["text"]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` returned."""
        self.epoch = state["epoch"]
        self.ended, self._usable = self.epoch == self._epochs, True
        self._rows = self._start()
        moments = Moments.zeros(self._rows.shape).to_json()
        self._rows.set_state({"text": state["text"], "moments": moments})


@dataclass(frozen=True)
class _Piece:
    """Rows that wait for their half, and how to get them again.

    Attributes:
        epoch: Their epoch.
        feed: Position of the feed before their batch of text.
        gone: Usable rows of that batch before them.
        rows: The rows.
    """

    epoch: int
    feed: dict[str, Any]
    gone: int
    rows: ActivationBatch


class Ring:
    """An iterator of batches drawn from one half of a ring while the other half fills.

    Args:
        feed: Where rows come from.
        half: Rows in half of the ring [tokens].
        batch: Rows in a batch [tokens].
        seed: Decides the order.
        lockstep: Other processes run the same models with this one: all take rows at the same
            time, until the last one has enough.
        owner: What the position belongs to: the process, whose text is a part of the whole.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        half: int,
        batch: int,
        seed: tuple[int, ...],
        lockstep: bool,
        owner: str = "process 0 of 1",
    ):
        self._owner = owner
        self._feed = feed
        self._half = half
        self._batch = batch
        self._seed = seed
        self._lockstep = lockstep
        self._restart({"half": 0, "feed": feed.get_state(), "skip": 0, "taken": 0})

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self

    def __next__(self) -> ActivationBatch:
        # All rows that this batch can need are taken first and by all processes at once: below,
        # where they may turn at different times, none waits for another.
        if not everywhere(self._loaded() >= self._batch, self._lockstep):
            self._fill(self._batch + self._half)
        if self._feed.ended and not everywhere(
            self._loaded() + self._held >= self._batch, self._lockstep
        ):
            raise StopIteration
        parts, missing = [], self._batch
        while missing:
            window = self._window = self._window or self._turn()
            part = window.take(self._taken, self._taken + missing)
            parts.append(part)
            missing -= len(part.tokens)
            self._taken += len(part.tokens)
            if self._taken == len(window.order):
                self._window, self._taken, self._index = None, 0, self._index + 1
        self._fill(self._taken)
        return concatenate(parts)

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch, as JSON: where the half's first row is."""
        feed, skip = self._origin if self._window is not None else self._next_origin()
        own = {"half": self._index, "feed": feed, "skip": skip, "taken": self._taken}
        return {self._owner: own}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` returned, in this process or an earlier one.

        Raises:
            JaxdiffError: If it is of another number of processes, whose text is split otherwise.
        """
        if self._owner not in state:
            raise JaxdiffError(
                f"the checkpoint has positions in the text of {', '.join(state)}, and this is "
                + self._owner,
                where="checkpoints",
                fix="in stream mode, go on with as many processes; store mode goes on with any",
            )
        self._feed.set_state(state[self._owner]["feed"])
        self._restart(state[self._owner])

    def _restart(self, state: dict[str, Any]) -> None:
        self._index, self._taken, self._skip = state["half"], state["taken"], state["skip"]
        self._window: Window | None = None
        self._origin = (state["feed"], state["skip"])
        self._waiting: deque[_Piece] = deque()
        self._held = 0

    def _next_origin(self) -> tuple[Any, int]:
        if self._waiting:
            return self._waiting[0].feed, self._waiting[0].gone
        return self._feed.get_state(), self._skip

    def _loaded(self) -> int:
        """Returns the rows left of the half being dealt out; below 0 where it is to be reloaded."""
        return (0 if self._window is None else len(self._window.order)) - self._taken

    def _fill(self, rows: int) -> None:
        """Takes rows from the feed until this many wait."""
        while not self._feed.ended and not everywhere(self._held >= rows, self._lockstep):
            state = self._feed.get_state()
            batch = next(self._feed)
            if batch is None:
                return
            skip, self._skip = self._skip, 0
            batch = _cut(batch, slice(skip, None))
            if len(batch.tokens):
                self._waiting.append(_Piece(self._feed.epoch, state, skip, batch))
                self._held += len(batch.tokens)

    def _turn(self) -> Window:
        """Returns the half that has been filling; it ends where an epoch does."""
        self._origin = self._next_origin()
        epoch, parts, missing = self._waiting[0].epoch, [], self._half
        while missing and self._waiting and self._waiting[0].epoch == epoch:
            piece = self._waiting.popleft()
            now, later = (_cut(piece.rows, span) for span in (slice(missing), slice(missing, None)))
            parts.append(now)
            missing -= len(now.tokens)
            if len(later.tokens):
                gone = piece.gone + len(now.tokens)
                self._waiting.appendleft(replace(piece, gone=gone, rows=later))
        rows = concatenate(parts)
        self._held -= len(rows.tokens)
        order = np.random.default_rng((*self._seed, self._index)).permutation(len(rows.tokens))
        return Window(rows, order)


def _cut(batch: ActivationBatch, span: slice) -> ActivationBatch:
    return jax.tree.map(lambda a: a[span], batch)
