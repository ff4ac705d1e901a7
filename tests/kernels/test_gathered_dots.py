"""Scalar products of listed pairs of rows against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jaxdiff.kernels.gathered_dots import gathered_dots, tpu, xla

# With what a kernel reads before it was written set to NaN, and copies done when waited for.
SIMULATED = pltpu.InterpretParams(dma_execution_mode="on_wait", detect_races=True)
IMPLEMENTATIONS = {
    "xla": xla.gathered_dots,
    "pallas_tpu": functools.partial(tpu.gathered_dots, interpret=True),
    "pallas_tpu simulated": functools.partial(tpu.gathered_dots, interpret=SIMULATED),
}
# Rows of both sides, width, entries, count; the dtype of the right side; whether neighbours share
# rows; what factors are rounded to. Only columns that two registers' lanes hold are packed.
CASES = {
    "aligned": ((16, 9, 128, 128, 128), jnp.float32, True, jnp.bfloat16),
    "odd, windows that nothing is in": ((90, 40, 200, 520, 200), jnp.float32, True, jnp.float32),
    "packed": ((12, 5, 256, 140, 129), jnp.bfloat16, False, jnp.bfloat16),
    "one entry": ((3, 2, 1, 1, 1), jnp.float32, False, jnp.float32),
    "none": ((3, 2, 5, 9, 0), jnp.bfloat16, False, jnp.float32),
}


def draw(shape, dtype=jnp.float32, neighbours=False):
    rows, others, width, size, count = shape
    rng = np.random.default_rng(width)
    listed = rng.integers(0, rows, size)
    return (
        jnp.asarray(rng.normal(size=(rows, width)), jnp.float32),
        jnp.asarray(np.sort(listed) if neighbours else listed, jnp.int32),
        jnp.asarray(rng.normal(size=(others, width)), dtype),
        jnp.asarray(rng.integers(0, others, size), jnp.int32),
        jnp.int32(count),
    )


def expected(left, rows, right, others, count, dtype=jnp.float32) -> np.ndarray:
    sides = (np.asarray(a.astype(dtype).astype(jnp.float32), np.float64) for a in (left, right))
    one, other = (side[np.asarray(of)] for side, of in zip(sides, (rows, others), strict=True))
    return np.where(np.arange(len(rows)) < int(count), np.sum(one * other, axis=1), 0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["xla", "pallas_tpu"])
def test_values(name, case):
    *drawn, dtype = CASES[case]
    given = draw(*drawn)
    found = IMPLEMENTATIONS[name](*given, dtype=dtype)
    np.testing.assert_allclose(found, expected(*given, dtype), atol=2e-5)


def test_copies_are_waited_for():
    given = draw((40, 9, 128, 300, 290), neighbours=True)
    found = IMPLEMENTATIONS["pallas_tpu simulated"](*given, dtype=jnp.float32)
    np.testing.assert_allclose(found, expected(*given), atol=2e-5)


@pytest.mark.parametrize("name", ["xla", "pallas_tpu"])
def test_not_a_number_stays_in_its_entries(name):
    left, rows, *given = draw((9, 7, 128, 60, 50))
    left = left.at[rows[3]].set(jnp.nan)
    # From the count on, nothing is NaN.
    rows = rows.at[55].set(rows[3])
    found = np.asarray(IMPLEMENTATIONS[name](left, rows, *given, dtype=jnp.float32))
    of_row = (np.asarray(rows) == int(rows[3])) & (np.arange(60) < 50)
    np.testing.assert_array_equal(np.isnan(found), of_row)


def test_the_platform_decides():
    traced = jax.jit(gathered_dots).trace(*draw((9, 7, 128, 60, 50)))
    assert "custom_call" not in traced.lower().as_text()
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_a_name_insists():
    given = draw((9, 7, 128, 60, 50))
    with pytest.raises(ValueError, match="(?i)interpret"):
        gathered_dots(*given, implementation="pallas_tpu")
