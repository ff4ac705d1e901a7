import itertools
import time

import numpy as np
import pytest

from harness import timing
from harness.measure import Row, difference, measure
from harness.workers import Call, Failed, First
from workloads import Case


def test_calls_alternate_there_and_back():
    assert list(timing.alternate([3, 3])) == [0, 1, 1, 0, 0, 1]
    assert list(timing.alternate([1, 3, 2])) == [0, 1, 2, 2, 1, 1]
    assert list(timing.alternate([])) == []


@pytest.mark.parametrize("estimate", [1e-4, 0.3, 2.0, 30.0])
def test_a_plan_fits_its_budget(estimate):
    plan = timing.plan(estimate, budget=10.0)
    assert plan.repeats >= 1
    assert plan.repeats == 1 or (plan.warmups + plan.repeats) * estimate <= 10.0


def test_a_quick_call_is_warmed_up_thrice_and_timed_twenty_times():
    assert timing.plan(0.01, budget=10.0) == (3, 20)
    assert timing.plan(60.0, budget=10.0) == (0, 1)


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_statistics_are_those_of_numpy(count):
    seconds = np.random.default_rng(count).exponential(size=count)
    expected = np.percentile(seconds, [50, 25, 75, 0])
    np.testing.assert_allclose(timing.summarize(list(seconds))[:4], expected)


def test_break_even_is_the_first_call_with_no_more_time_in_all():
    values = (0.5, 1.0, 3.0, 40.0)
    for first, warm, other_first, other_warm in itertools.product(values, repeat=4):
        expected = next(
            (
                calls
                for calls in range(1, 1000)
                if timing.total(first, warm, calls) <= timing.total(other_first, other_warm, calls)
            ),
            None,
        )
        assert timing.break_even(first, warm, other_first, other_warm) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        (np.full((2, 3), 1.0 + 2e-4),),  # Absolute.
        (np.ones((3, 2)),),
        (np.ones((2, 3)), np.ones(1)),
        (np.full((2, 3), np.nan),),
    ],
)
def test_outputs_that_differ_are_refused(wrong):
    with pytest.raises(Failed):
        difference(wrong, (np.ones((2, 3)),))


def test_small_outputs_are_compared_by_their_size():
    reference = (np.full(4, 1e-3),)
    with pytest.raises(Failed):
        difference((np.full(4, 1.001e-3),), reference)
    assert difference((np.full(4, 1e-3 + 1e-8),), reference) == pytest.approx(1e-8, rel=1e-3)


class _Worker:
    """Stands for a library: sleeps, and gives `value`."""

    def __init__(self, value: float, order: list[str], name: str):
        self.value, self.order, self.name = value, order, name

    def ways(self, case: Case) -> list[str]:
        if self.value < 0:
            raise Failed("has no such thing")
        return [""]

    def first(self, way: str) -> First:
        return First(0.5, 2, (np.array([self.value]),), 12.0)

    def run(self, way: str) -> Call:
        self.order.append(self.name)
        time.sleep(1e-3)
        return Call(1e-3, 1)


def test_a_wrong_or_missing_library_is_reported_and_not_timed():
    order: list[str] = []
    workers = {name: _Worker(value, order, name) for name, value in WORTH.items()}
    rows = {row.library: row for row in measure(Case("W0", 1), workers, seconds=1.0)}
    assert rows["wrong"].failed == "outputs differ by 1.0e+00, 1.0e+00 of their norm"
    assert rows["absent"].failed == "has no such thing"
    assert rows["wrong"].warm is None and set(order) == {"a", "b"}
    assert order[6:14] == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert rows["b"].plan == (3, 20) and rows["b"].difference == 0.0
    assert rows["b"] == Row(
        "b", "", 0.5, 0.0, None, (3, 20), rows["b"].warm, 12.0, compiled=2, recompiled=20
    )


WORTH = {"a": 1.0, "wrong": 2.0, "absent": -1.0, "b": 1.0}
