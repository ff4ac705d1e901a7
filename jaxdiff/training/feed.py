"""Batches on the devices one step ahead, and how long the devices had none."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxdiff.activations.source import BatchIterator
from jaxdiff.training.compiled import put


class Feed:
    """Puts the next batch on the devices while they do the step on the last one.

    Batches are taken in the caller's thread: a source may run programs on the devices itself, and
    programs of several devices must be sent in one order. A thread only looks when a step is done.

    Args:
        batches: Where they come from.
        mesh: Where they go, split over the axis `data`.

    Attributes:
        position: State of `batches` after the batch that was returned last.
    """

    def __init__(self, batches: BatchIterator, mesh: Mesh):
        self.position: dict[str, Any] = batches.get_state()
        self._batches, self._mesh = batches, mesh
        self._ahead: tuple[Array, dict[str, Any]] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="jaxdiff-feed")
        self._busy: Future[float] | None = None
        self._waited, self._since = 0.0, time.perf_counter()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def take(self) -> Float[Array, "B M D"]:
        """Returns the next batch.

        Raises:
            StopIteration: If there is none.
        """
        x, self.position = self._ahead or self._fetch()
        self._ahead = None
        return x

    def prefetch(self, work: Any) -> None:
        """Takes the next batch while the devices work.

        Args:
            work: Array that is there when the step just sent is done.
        """
        if self._busy is not None:
            self._busy.result()  # The devices never hold more than two batches.
        self._busy = self._pool.submit(_when_done, work)
        try:
            self._ahead = self._fetch()
        except StopIteration:
            return  # `take` says so, if a batch is asked for.
        if self._busy.done():
            self._waited += time.perf_counter() - self._busy.result()

    def waited(self) -> float:
        """Returns the part of the time since the last call that the devices waited [fraction]."""
        now = time.perf_counter()
        part = self._waited / (now - self._since)
        self._waited, self._since = 0.0, now
        return part

    def _fetch(self) -> tuple[Array, dict[str, Any]]:
        x = put(next(self._batches).x, self._mesh)
        return x, self._batches.get_state()


def _when_done(work: Any) -> float:
    jax.block_until_ready(work)
    return time.perf_counter()
