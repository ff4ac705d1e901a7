"""Several ways of doing one thing, timed in turn in one process and shown beside each other."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from harness import timing


def compare(sides: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, dict[str, Any]]:
    """Calls each side once, warms it up, and times the sides in turn.

    Args:
        sides: Functions that return when all is done.
        seconds: Time for each [s].

    Returns:
        For each side its first call and the order statistics of the others [s].
    """
    results, plans = {}, []
    for name, side in sides.items():
        results[name] = {"first_s": _timed(side)}
        plan = timing.plan(_timed(side), seconds)
        for _ in range(plan.warmups):
            side()
        plans.append(plan)
    names, taken = list(sides), {name: [] for name in sides}
    for turn in timing.alternate([plan.repeats for plan in plans]):
        taken[names[turn]].append(_timed(sides[names[turn]]))
    for name in names:
        results[name]["warm_s"] = timing.summarize(taken[name])._asdict()
    return results


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
    side()
    return time.perf_counter() - start
