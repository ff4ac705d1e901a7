"""The shuffle ring of stream mode."""

from collections import deque
from collections.abc import Callable, Iterator
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
        ended: True after the last row of the last epoch.
    """

    def __init__(self, start: Callable[[], Harvest], epochs: int | None):
        self.ended = False
        self._start = start
        self._epochs = epochs
        self._epoch = 0
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
        self._epoch, self._usable = self._epoch + 1, False
        if self._epoch == self._epochs:
            self.ended = True
            return None
        self._rows = self._start()
        return next(self)

    def get_state(self) -> dict[str, Any]:
        """Returns the position as JSON."""
        return {"epoch": self._epoch, "text": self._rows.get_state()["text"]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` returned."""
        self.ended, self._usable = False, True
        self._epoch = state["epoch"]
        self._rows = self._start()
        moments = Moments.zeros(self._rows.shape).to_json()
        self._rows.set_state({"text": state["text"], "moments": moments})


class Ring:
    """An iterator of batches drawn from one half of a ring while the other half fills.

    Args:
        feed: Where rows come from.
        half: Rows in half of the ring [tokens].
        batch: Rows in a batch [tokens].
        seed: Decides the order.
        lockstep: Other processes run the same models with this one: all take rows at the same
            time, until the last one has enough.
    """

    def __init__(self, feed: Feed, *, half: int, batch: int, seed: tuple[int, ...], lockstep: bool):
        self._feed = feed
        self._half = half
        self._batch = batch
        self._seed = seed
        self._lockstep = lockstep
        self._restart({"half": 0, "feed": feed.get_state(), "skip": 0, "taken": 0})

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self

    def __next__(self) -> ActivationBatch:
        # Enough for this batch, so that the rows cannot run out in the middle of it.
        loaded = 0 if self._window is None else len(self._window.order)
        self._fill(self._batch + self._taken - loaded)
        if self._feed.ended and not everywhere(self._left() >= self._batch, self._lockstep):
            raise StopIteration
        parts, missing = [], self._batch
        while missing:
            if self._window is None:
                self._turn()
            assert self._window is not None
            part = self._window.take(self._taken, self._taken + missing)
            parts.append(part)
            missing -= len(part.tokens)
            self._taken += len(part.tokens)
            if self._taken == len(self._window.order):
                self._window, self._taken, self._index = None, 0, self._index + 1
        self._fill(self._taken)
        return concatenate(parts)

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch, as JSON: where the half's first row is."""
        feed, skip = self._origin if self._window is not None else self._next_origin()
        return {"half": self._index, "feed": feed, "skip": skip, "taken": self._taken}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` returned, in this process or an earlier one."""
        self._feed.set_state(state["feed"])
        self._restart(state)

    def _restart(self, state: dict[str, Any]) -> None:
        self._index, self._taken, self._skip = state["half"], state["taken"], state["skip"]
        self._window: Window | None = None
        self._origin = (state["feed"], state["skip"])
        # Rows waiting for the next half: position of their batch of text, rows of it gone before.
        self._waiting: deque[tuple[Any, int, ActivationBatch]] = deque()
        self._held = 0

    def _next_origin(self) -> tuple[Any, int]:
        if self._waiting:
            return self._waiting[0][:2]
        return self._feed.get_state(), self._skip

    def _left(self) -> int:
        window = 0 if self._window is None else len(self._window.order)
        return window - self._taken + self._held

    def _fill(self, rows: int) -> None:
        """Takes rows from the feed until this many wait."""
        while not self._feed.ended and not everywhere(self._held >= rows, self._lockstep):
            state = self._feed.get_state()
            batch = next(self._feed)
            if batch is None:
                return
            skip, self._skip = self._skip, 0
            batch = jax.tree.map(lambda a, skip=skip: a[skip:], batch)
            if len(batch.tokens):
                self._waiting.append((state, skip, batch))
                self._held += len(batch.tokens)

    def _turn(self) -> None:
        """Begins to deal out the half that has been filling."""
        self._fill(self._half)
        self._origin = self._next_origin()
        parts, missing = [], min(self._half, self._held)
        self._held -= missing
        while missing:
            state, gone, batch = self._waiting.popleft()
            parts.append(jax.tree.map(lambda a, n=missing: a[:n], batch))
            if len(batch.tokens) > missing:
                rest = jax.tree.map(lambda a, n=missing: a[n:], batch)
                self._waiting.appendleft((state, gone + missing, rest))
            missing -= len(parts[-1].tokens)
        rows = concatenate(parts)
        order = np.random.default_rng((*self._seed, self._index)).permutation(len(rows.tokens))
        self._window = Window(rows, order)
