import pytest

from goals import goals
from harness.measure import Row
from harness.timing import Summary


def _row(library: str, median: float, way: str = "") -> Row:
    return Row(library, way, first=1.0, warm=Summary(median, median, median, median, 20))


def test_goals_are_about_the_fastest_peer_and_our_faster_way():
    rows = {
        "W4 B1": [
            _row("nnsight", 2.0, "a forward a cell"),
            _row("torch hooks", 1.2, "a forward a cell"),
            _row("torch hooks", 0.4, "cells are rows"),
            _row("nnsight", 0.2, "rows, from the patched layer on"),
            Row("pyvene", "a forward a cell", first=0.1, failed="outputs differ"),
            _row("jaxdiff", 0.3, "weights stacked"),
            _row("jaxdiff", 0.1, "weights apart"),
        ],
        "W0 B1": [_row("torch hooks", 0.5), _row("torch hooks", 0.1, "torch.compile")],
        "W3 B1": [_row("jaxdiff", 0.6)],
        "W0 B4": [_row("jaxdiff", 1.0)],
        "W2 B4": [_row("jaxdiff", 0.3)],
    }
    cell, batch, suffix, attribution, _, _, patched, capture = goals(rows, "tiny")
    assert (cell.ratio, cell.met) == (pytest.approx(12.0), True)
    assert (batch.ratio, batch.met) == (pytest.approx(4.0), True)
    assert (suffix.ratio, suffix.met) == (2.0, True)
    assert (attribution.ratio, attribution.met) == (None, None)
    assert patched.ratio == 0.5 / 0.6 and not patched.met
    assert (capture.ratio, capture.met) == (0.3, True)
    assert cell.sides == "torch hooks a forward a cell 1200.00 ms / jaxdiff weights apart 100.00 ms"


def test_a_goal_that_is_missed_says_so():
    rows = {
        "W2 B4": [_row("jaxdiff", 0.5)],
        "W0 B4": [_row("jaxdiff", 1.0)],
        "W5 B1": [_row("torch hooks", 1.0), _row("jaxdiff", 0.5)],
    }
    *_, capture = goals(rows, "tiny")
    assert capture.met is False
    assert [goals(rows, shape)[4].met for shape in ("tiny", "gpt2")] == [False, True]
