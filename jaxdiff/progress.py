"""Progress of long work, shown by process 0 only."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)


@runtime_checkable
class Advance(Protocol):
    """Moves a progress bar on by `n` units, with a short `note` shown behind it."""

    def __call__(self, n: int = 1, note: str = "") -> None: ...  # noqa: D102


def log(message: str) -> None:
    """Prints one line for the person who waits; silent on all processes but the first."""
    if jax.process_index() == 0:
        console.print(message, highlight=False, markup=False)


@contextlib.contextmanager
def progress(title: str, total: int | None, unit: str, start: int = 0) -> Iterator[Advance]:
    """Shows a bar on a terminal, or a line every tenth of the way in a log file.

    Args:
        title: What is being done.
        total: Units in all; None when unknown.
        unit: Name of one unit, in the plural (steps, sequences, rows).
        start: Units that an earlier, interrupted run has done already.

    Yields:
        A function that advances the bar.
    """
    if jax.process_index() != 0:
        yield lambda n=1, note="": None
        return
    if not sys.stderr.isatty():
        yield _line_logger(title, total, unit, start)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=start, note="")

        def advance(n: int = 1, note: str = "") -> None:
            bar.update(task, advance=n, note=note)

        yield advance


def _line_logger(title: str, total: int | None, unit: str, start: int) -> Advance:
    done, shown = start, start
    stride = max((total or 0) // 10, 1) if total else 1000

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, shown
        done += n
        if done - shown >= stride or done == total:
            shown = done
            log(f"{title}: {done}{f'/{total}' if total else ''} {unit}  {note}".rstrip())

    return advance
