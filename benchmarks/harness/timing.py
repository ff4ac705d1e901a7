"""Arithmetic of timings: alternation, order statistics, break-even."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Plan(NamedTuple):
    """How often a call is made before and while it is timed."""

    warmups: int
    repeats: int


class Summary(NamedTuple):
    """Order statistics of the seconds that calls took, and their number."""

    median: float
    q1: float
    q3: float
    fastest: float
    repeats: int


def plan(estimate: float, budget: float, repeats: int = 20) -> Plan:
    """Plans calls that take about `estimate` seconds each to fill at most `budget` seconds.

    Three warm-ups and `repeats` timed calls where they fit; else as many as do, one at least. The
    call that was made to check the outputs is a warm-up too, so a slow call has none but that.
    """
    fits = int(budget / max(estimate, 1e-9))
    warmups = min(3, fits // 5)
    return Plan(warmups, max(1, min(repeats, fits - warmups)))


def alternate(repeats: Sequence[int]) -> Iterator[int]:
    """Yields which call to make next: A B C, C B A, A B C, ... until each had its repeats."""
    for turn in range(max(repeats, default=0)):
        sides = [side for side, times in enumerate(repeats) if turn < times]
        yield from sides if turn % 2 == 0 else reversed(sides)


def summarize(seconds: Sequence[float]) -> Summary:
    """Returns median, quartiles, minimum and count."""
    if len(seconds) == 1:
        return Summary(*(seconds[0],) * 4, 1)
    q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
    return Summary(median, q1, q3, min(seconds), len(seconds))


def total(first: float, warm: float, calls: int) -> float:
    """Returns the seconds that `calls` calls take, the first of which traces and compiles."""
    return first + (calls - 1) * warm


def break_even(first: float, warm: float, other_first: float, other_warm: float) -> int | None:
    """Returns after how many calls one side has taken no longer than the other; None if never."""
    behind = first - other_first
    if behind <= 0:
        return 1
    gain = other_warm - warm
    return None if gain <= 0 else 1 + math.ceil(behind / gain)
