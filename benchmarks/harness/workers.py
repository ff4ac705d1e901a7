"""One process a library, of which one works at a time.

Libraries that patch torch do not reach each other, each has its own peak of memory, and calls can
still alternate: a process that waits for its turn sleeps.
"""

import contextlib
import importlib
import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

from harness import machine
from workloads import Case, Library, Outputs, Subject, Ways


class Failed(Exception):
    """A library could not do what it was asked for; the message is its own."""


class First(NamedTuple):
    """What the first call of a case gave.

    Attributes:
        seconds: Its duration, with all tracing and compiling.
        compiled: Programs that it compiled.
        outputs: What it returned.
        peak: Peak of the process's resident memory in it [MiB].
    """

    seconds: float
    compiled: int
    outputs: Outputs
    peak: float | None


class Call(NamedTuple):
    """Duration of a later call, and how many programs it compiled."""

    seconds: float
    compiled: int


class Worker:
    """A library in a process of its own.

    Args:
        target: Module and class of the library, `module:class`.
        subject: What it is made from.

    Raises:
        Failed: If the library is not installed or cannot load the models.
    """

    def __init__(self, target: str, subject: Subject):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, target, subject), daemon=True)
        self._process.start()
        theirs.close()
        self.import_seconds, self.load_seconds = self._receive()

    def ways(self, case: Case) -> list[str]:
        """Makes a case ready and returns the names of the ways to run it."""
        return self._ask("ways", case)

    def first(self, way: str) -> First:
        """Runs the current case for the first time."""
        return self._ask("first", way)

    def run(self, way: str) -> Call:
        """Runs the current case once more."""
        return self._ask("run", way)

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(timeout=10)
        self._process.kill()

    def _ask(self, *question: object) -> object:
        self._connection.send(question)
        return self._receive()

    def _receive(self) -> object:
        try:
            kind, answer = self._connection.recv()
        except EOFError:
            self._process.join()
            raise Failed(f"the process ended with {self._process.exitcode}") from None
        if kind == "failed":
            raise Failed(answer)
        return answer


class _Server:
    """The other end: answers questions about one library."""

    def __init__(self, library: Library):
        self._library = library
        self._ways: Ways = {}

    def ways(self, case: Case) -> list[str]:
        self._ways = {}
        self._ways = self._library.ways(case)
        return list(self._ways)

    def first(self, way: str) -> First:
        machine.reset_peak()
        call, outputs = self._timed(way)
        return First(*call, outputs, machine.peak())

    def run(self, way: str) -> Call:
        return self._timed(way)[0]

    def _timed(self, way: str) -> tuple[Call, Outputs]:
        before, start = self._library.compiles(), time.perf_counter()
        outputs = self._ways[way]()
        seconds = time.perf_counter() - start
        return Call(seconds, self._library.compiles() - before), outputs


def _serve(connection: Connection, target: str, subject: Subject) -> None:
    def load() -> tuple[float, float]:
        nonlocal server
        module, name = target.split(":")
        start = time.perf_counter()
        library = getattr(importlib.import_module(module), name)
        imported = time.perf_counter()
        server = _Server(library(subject))
        return imported - start, time.perf_counter() - imported

    server: _Server | None = None
    connection.send(_answer(load))
    while server is not None and (question := connection.recv()) is not None:
        name, *arguments = question
        connection.send(_answer(getattr(server, name), *arguments))


def _answer(call: Callable[..., object], *arguments: object) -> tuple[str, object]:
    try:
        return "done", call(*arguments)
    except Exception as error:
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}".splitlines()[0]
