"""What jaxdiff set out to reach on two cores, and whether it did."""

import dataclasses
from collections.abc import Callable, Iterable

from harness.measure import Row
from workloads import BATCHED, CELL, SUFFIX

OURS = "jaxdiff"
FLOOR = "torch hooks"
Rows = dict[str, list[Row]]
"""Rows of each case by the case's name."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """A goal: one duration over another is at least, or at most, some number.

    Attributes:
        text: What is asked for.
        ratio: The ratio that was measured; None if one side is missing.
        bound: The number.
        most: Whether the ratio must be at most the number instead of at least.
        sides: What was divided by what.
    """

    text: str
    ratio: float | None
    bound: float
    most: bool = False
    sides: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None if it was not measured."""
        if self.ratio is None:
            return None
        return self.ratio <= self.bound if self.most else self.ratio >= self.bound


def goals(rows: Rows, shape: str) -> list[Goal]:
    """Returns all goals with what was measured; peers are the fastest that gave right outputs.

    Our own ways have other names than a peer's ways of a sweep.
    """
    ours_w4 = _fastest(rows, "W4 B1", _ours)
    steps = 5.0 if shape == "tiny" else 1.0

    def against(case: str, choose: Callable[[Row], bool], text: str, bound: float) -> Goal:
        return _goal(text, _fastest(rows, case, choose), _fastest(rows, case, _ours), bound)

    def sweep(way: str, text: str, bound: float) -> Goal:
        peer = _fastest(rows, "W4 B1", lambda row: row.way.startswith(way))
        return _goal(text, peer, ours_w4, bound)

    plain = _fastest(rows, "W0 B1", lambda row: row.library == FLOOR and not row.way)
    return [
        sweep(CELL, "sweep: peer's forward a cell / jaxdiff", 10.0),
        sweep(BATCHED, "sweep: peer's best batch of whole forwards / jaxdiff", 1.7),
        sweep(SUFFIX, "sweep: peer that skips the shared prefix by hand / jaxdiff", 1.7),
        against("W7 B1", lambda row: not _ours(row), "attribution: peer / jaxdiff", 3.0),
        against("W5 B1", lambda row: row.library == FLOOR, "steering B1: torch / jaxdiff", steps),
        against("W5 B8", lambda row: row.library == FLOOR, "steering B8: torch / jaxdiff", steps),
        _goal("torch plain / jaxdiff patched", plain, _fastest(rows, "W3 B1", _ours), 1.0),
        dataclasses.replace(
            _goal(
                "capture at a quarter / full forward, both jaxdiff",
                _fastest(rows, "W2 B4", _ours),
                _fastest(rows, "W0 B4", _ours),
                0.4,
            ),
            most=True,
        ),
    ]


def fastest(rows: Iterable[Row]) -> Row | None:
    """Returns the row with the least median, of those that were timed."""
    timed = [row for row in rows if row.warm is not None]
    return min(timed, key=lambda row: row.warm.median, default=None)


def _fastest(rows: Rows, case: str, choose: Callable[[Row], bool]) -> Row | None:
    return fastest(filter(choose, rows.get(case, [])))


def _ours(row: Row) -> bool:
    return row.library == OURS


def _goal(text: str, above: Row | None, below: Row | None, bound: float) -> Goal:
    if above is None or below is None:
        return Goal(text, None, bound)
    sides = " / ".join(
        f"{' '.join(filter(None, (row.library, row.way)))} {1e3 * row.warm.median:.2f} ms"
        for row in (above, below)
    )
    return Goal(text, above.warm.median / below.warm.median, bound, sides=sides)
