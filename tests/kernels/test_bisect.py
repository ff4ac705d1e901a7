"""Bisection against looking at every integer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxdiff.kernels.bisect import last_that

LOW, HIGH = 0x00800000, 0x7F800001


@pytest.mark.parametrize("at_once", [1, 2, 15])
def test_every_answer_of_short_ranges(at_once):
    """Searches of different ranges go on together; what holds at `high` or beyond counts not."""
    low, high, last = (a.ravel() for a in np.meshgrid([-7, 0, 3], [4, 5, 21], np.arange(-7, 40)))
    some = (last >= low).nonzero()[0]
    low, high, last = (jnp.asarray(a[some], jnp.int32) for a in (low, high, last))
    found = jax.jit(lambda: last_that(lambda p: p <= last, low, high, at_once))()
    np.testing.assert_array_equal(found, np.minimum(last, high - 1))


@pytest.mark.parametrize("at_once, rounds", [(1, 31), (15, 8)])
def test_the_ends_of_the_range_of_floats(at_once, rounds):
    taken = []
    with jax.disable_jit():
        for last in (LOW, LOW + 1, 0x3F800000, HIGH - 2, HIGH - 1):
            calls = []

            def holds(pivot, last=last, calls=calls):
                calls.append(pivot)
                return pivot <= last

            assert last_that(holds, LOW, HIGH, at_once) == last
            taken.append(len(calls))
    assert max(taken) <= rounds
