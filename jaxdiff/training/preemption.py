"""Noticing that the machine is wanted back: SIGTERM, on one process or any of many."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

# The processes agree on the number of a call, so that it must go on from one training to the next.
_calls = itertools.count(1)


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM into an answer, as long as the context is open.

    A second SIGTERM does what it did before. Outside the main thread, where Python sets no
    handlers, the signal is not noticed.

    Yields:
        A function that is called after every step, and says whether to save and stop. All
        processes of a run get True after the same step.
    """
    if jax.process_count() > 1:
        # JAX's own service has the signal, and agrees on a call that none has made yet.
        yield lambda: multihost_utils.reached_preemption_sync_point(next(_calls))
        return
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number, frame) -> None:
        asked.set()
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
