"""Several ways of doing one thing, timed in turn in one process and shown beside each other."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from harness import timing


def compare(sides: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, dict[str, Any]]:
    """Calls each side once, and times the sides as `alternately` does.

    Args:
        sides: Functions; what they return is waited for.
        seconds: Time for each [s].

    Returns:
        For each side its first call and the order statistics of the others [s].
    """
    first = {name: _timed(side) for name, side in sides.items()}
    warm = alternately(sides, seconds)
    return {name: {"first_s": first[name], "warm_s": warm[name]._asdict()} for name in sides}


def alternately(
    sides: Mapping[str, Callable[[], object]], seconds: float
) -> dict[str, timing.Summary]:
    """Times sides in turn that have been called before, after one call more and warm-ups.

    In each turn a side is called twice, and the second call is timed: in the first one comes back
    what the others' turns have pushed out of caches and memory.

    Args:
        sides: Functions; what they return is waited for.
        seconds: Time for each, of both calls [s].

    Returns:
        Order statistics of the calls of each side [s].
    """
    plans = {name: timing.plan(_timed(side), seconds / 2) for name, side in sides.items()}
    for name, side in sides.items():
        for _ in range(plans[name].warmups):
            _timed(side)
    names, taken = list(sides), {name: [] for name in sides}
    for turn in timing.alternate([plan.repeats for plan in plans.values()]):
        side = sides[names[turn]]
        _timed(side)
        taken[names[turn]].append(_timed(side))
    return {name: timing.summarize(times) for name, times in taken.items()}


def show(console: Console, title: str, results: dict[str, dict[str, Any]], ours: str) -> None:
    """Prints a table of the sides and their ratio to ours."""
    table = Table(title=title, title_justify="left")
    table.add_column("side")
    for heading in ("first ms", "median ms", "IQR", "n", "/ ours"):
        table.add_column(heading, justify="right")
    base = results[ours]["warm_s"]["median"]
    for name, row in results.items():
        warm = row["warm_s"]
        table.add_row(
            name,
            f"{row['first_s'] * 1e3:.1f}",
            f"{warm['median'] * 1e3:.2f}",
            f"{(warm['q3'] - warm['q1']) * 1e3:.2f}",
            str(warm["repeats"]),
            f"{warm['median'] / base:.2f}",
        )
    console.print(table)


def _timed(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(side())
    return time.perf_counter() - start
