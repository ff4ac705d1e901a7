"""Results on the terminal."""

from rich.console import Console
from rich.table import Table

from goals import OURS, Goal, fastest
from harness import timing
from harness.measure import Row
from workloads import WORKLOADS, Case


def show_case(console: Console, case: Case, rows: list[Row]) -> None:
    """Prints a table of all ways of running a case."""
    table = Table(title=f"{case}: {WORKLOADS[case.workload]}", title_justify="left")
    for heading in ("library", "way"):
        table.add_column(heading)
    for heading in ("first ms", "median ms", "IQR", "min", "n", "/ ours", "pays after", "MiB"):
        table.add_column(heading, justify="right")
    ours = fastest(row for row in rows if row.library == OURS)
    for row in rows:
        table.add_row(row.library, row.way, *_cells(row, ours))
    console.print(table)


def show_goals(console: Console, goals: list[Goal]) -> None:
    """Prints which goals are met and which are missed."""
    table = Table(title="goals", title_justify="left")
    for heading in ("goal", "asked", "measured", "", "medians"):
        table.add_column(heading)
    for goal in goals:
        verdict = {True: "[green]met", False: "[red]missed", None: "not measured"}[goal.met]
        asked = f"{'<=' if goal.most else '>='} {goal.bound:g}"
        measured = "" if goal.ratio is None else f"{goal.ratio:.2f}"
        table.add_row(goal.text, asked, measured, verdict, goal.sides)
    console.print(table)


def break_even(row: Row, ours: Row | None) -> int | None:
    """Returns after how many calls our first call has paid for itself; None if never."""
    if ours is None or ours.warm is None or row.warm is None:
        return None
    return timing.break_even(ours.first, ours.warm.median, row.first, row.warm.median)


def _cells(row: Row, ours: Row | None) -> list[str]:
    if row.warm is None:
        return [f"not timed: {row.failed}"]
    warm = row.warm
    cells = [_ms(row.first), _ms(warm.median), _ms(warm.q3 - warm.q1), _ms(warm.fastest)]
    relative = "" if ours is None else f"{warm.median / ours.warm.median:.2f}"
    if row.library == OURS:
        pays = f"{row.compiled} compiled"
    else:
        calls = break_even(row, ours)
        pays = "" if ours is None else "never" if calls is None else f"{calls} calls"
    peak = "" if row.peak is None else f"{row.peak:.0f}"
    return [*cells, str(warm.repeats), relative, pays, peak]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"
