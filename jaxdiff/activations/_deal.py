"""Dealing the rows of shuffled windows out in batches, one batch ahead of who takes them."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Int

from jaxdiff.activations.int8 import Quantised, dequantise
from jaxdiff.activations.rows import concatenate
from jaxdiff.types import ActivationBatch


@dataclass(frozen=True)
class Window:
    """Rows in memory, and the order in which the usable ones are dealt out."""

    rows: ActivationBatch | Quantised
    order: Int[np.ndarray, " K"]

    def take(self, start: int, stop: int) -> ActivationBatch:
        """Returns a copy of the start-th to (stop - 1)-th row in that order."""
        at = self.order[start:stop]
        rows = jax.tree.map(lambda a: np.take(a, at, axis=0), self.rows)
        if isinstance(rows, Quantised):
            return replace(rows.known, x=dequantise(rows.values, rows.scale))
        return rows


@runtime_checkable
class Windows(Protocol):
    """An iterator of windows with a position."""

    def __next__(self) -> Window: ...  # noqa: D105
    def get_state(self) -> dict[str, Any]: ...  # noqa: D102
    def set_state(self, state: dict[str, Any]) -> None: ...  # noqa: D102


class Dealer:
    """An iterator of batches of equal size over the rows of all windows, in turn.

    Its state is the position of the window that the next row is from and the rows of it that are
    gone.

    Args:
        windows: Where the rows come from.
        batch: Rows in a batch [tokens].
        limit: Batches until the end; as many as there are when None [batches].
    """

    def __init__(self, windows: Windows, batch: int, limit: int | None = None):
        self._windows = windows
        self._batch = batch
        self._limit = limit
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="jaxdiff-deal")
        self._ahead: Future | None = None
        self._set(windows.get_state(), 0, 0)

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self

    def __next__(self) -> ActivationBatch:
        ahead = self._ahead or self._pool.submit(self._deal)
        batch, state = ahead.result()
        if batch is None:
            self._ahead = ahead
            raise StopIteration
        self._state = state
        self._ahead = self._pool.submit(self._deal)
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch that was taken, as JSON."""
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` returned, in this process or an earlier one."""
        if self._ahead is not None:
            self._ahead.result()
            self._ahead = None
        self._windows.set_state(state["window"])
        self._set(state["window"], state["taken"], state["batches"])

    def _set(self, start: dict[str, Any], taken: int, batches: int) -> None:
        self._window: Window | None = None
        self._start, self._taken, self._batches = start, taken, batches
        self._state = {"window": start, "taken": taken, "batches": batches}

    def _deal(self) -> tuple[ActivationBatch | None, dict[str, Any]]:
        """Returns the next batch and the position after it; runs in the thread."""
        parts, missing = [], self._batch
        if self._batches == self._limit:
            return None, self._state
        while missing:
            if self._window is None:
                self._window = next(self._windows, None)
                if self._window is None:
                    return None, self._state
            part = self._window.take(self._taken, self._taken + missing)
            parts.append(part)
            missing -= len(part.tokens)
            self._taken += len(part.tokens)
            if self._taken == len(self._window.order):
                self._window, self._taken = None, 0
                self._start = dict(self._windows.get_state())
        self._batches += 1
        state = {"window": self._start, "taken": self._taken, "batches": self._batches}
        return concatenate(parts), state
