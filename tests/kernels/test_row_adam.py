"""Row-sparse Adam of every implementation against float64 NumPy and against dense Adam."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jaxdiff.kernels.row_adam import Schedule, Table, row_adam, row_squares, squares_tpu, tpu, xla

pytestmark = pytest.mark.usefixtures("few_classes")
IMPLEMENTATIONS = {
    "xla": xla.row_adam,
    "pallas_tpu": functools.partial(tpu.row_adam, interpret=True),
    "pallas_tpu simulated": functools.partial(
        tpu.row_adam,
        interpret=pltpu.InterpretParams(dma_execution_mode="on_wait", detect_races=True),
    ),
}
RATE, SCALE, STEP, FIRST = 1e-2, 0.7, 11, 100
SCHEDULE = Schedule(jnp.int32(STEP), jnp.float32(RATE), jnp.float32(SCALE), jnp.int32(FIRST))


def setting(given, parts, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    rows, width = given.offsets.size - 1, given.source.shape[1]
    params = rng.normal(size=(rows, width))
    squares = None
    if parts:
        squares = jnp.asarray(np.sum(params.reshape(rows, parts, -1) ** 2, -1), jnp.float32)
    moment = jnp.asarray(rng.random((rows, width)), dtype)
    table = Table(jnp.asarray(params, jnp.float32), moment, squares)
    return table, jnp.asarray(rng.integers(0, STEP, rows), jnp.int32)


def alone(table, last, given, pull=None):
    """Returns the operands of one table."""
    indices, weights, offsets = given[1:]
    return (table,), last, (given.source,), indices, (weights,), offsets, SCHEDULE, (pull,)


def move(name, table, last, given, pull=None):
    (moved,) = IMPLEMENTATIONS[name](*alone(table, last, given, pull))
    return moved


move_compiled = jax.jit(functools.partial(move, "pallas_tpu"))


def expected(table, last, given, sums, pull=None):
    """Adam with beta1 = 0 on the rows that have entries."""
    touched = np.diff(np.asarray(given.offsets)) > 0
    params = np.asarray(table.params, np.float64)
    own = 0.0 if pull is None else np.repeat(pull, params.shape[1] // pull.shape[1], 1) * params
    gradient = SCALE * (sums(given) + own)
    moment = np.asarray(table.moment.astype(jnp.float32), np.float64)
    decay = 0.999 ** (STEP - np.asarray(last, np.float64))[:, None]
    second = decay * moment + 0.001 * gradient**2
    moved = params - RATE * gradient / (np.sqrt(second / (1 - 0.999**STEP)) + 1e-8)
    return (
        np.where(touched[:, None], moved, params),
        np.where(touched[:, None], second, moment),
        touched,
    )


CASES = {
    "aligned": ((16, 256, 64, 256), 2, jnp.float32, False),
    "odd, skewed": ((37, 200, 70, 300), 2, jnp.bfloat16, True),
    "one column": ((9, 1, 33, 40), 0, jnp.float32, False),
    "long groups": ((12, 130, 5, 400), 1, jnp.float32, True),
}


@pytest.mark.parametrize(
    "name, case", [*(("pallas_tpu", case) for case in CASES), ("xla", "odd, skewed")]
)
def test_values(draw, float64_sums, name, case):
    shape, parts, dtype, skewed = CASES[case]
    given = draw(*shape, skewed=skewed)
    table, last = setting(given, parts, dtype)
    pull = None
    if parts:
        pull = np.random.default_rng(1).normal(size=(len(last), parts)).astype(np.float32)
    params, moment, touched = expected(table, last, given, float64_sums, pull)
    moved = move(name, table, last, given, None if pull is None else jnp.asarray(pull))
    np.testing.assert_allclose(moved.params, params, atol=1e-5)
    precision = 1e-2 if dtype == jnp.bfloat16 else 2e-6
    np.testing.assert_allclose(moved.moment.astype(jnp.float32), moment, rtol=precision, atol=1e-6)
    assert 0 < touched.sum() < touched.size
    for before, after in ((table.params, moved.params), (table.moment, moved.moment)):
        np.testing.assert_array_equal(before[~touched], after[~touched])
    if parts:
        squares = np.sum(params.reshape(len(params), parts, -1) ** 2, axis=-1)
        np.testing.assert_allclose(moved.squares, squares, rtol=1e-5)


def test_copies_are_waited_for(draw, float64_sums):
    """Two windows of entries, and blocks of rows that are not visited."""
    given = draw(12, 128, 240, 150, skewed=True)
    table, last = setting(given, 2)
    moved = move("pallas_tpu simulated", table, last, given)
    params, moment, touched = expected(table, last, given, float64_sums)
    assert 2 < touched.reshape(-1, 16).any(axis=1).sum() < 15
    np.testing.assert_allclose(moved.params, params, atol=1e-5)
    np.testing.assert_allclose(moved.moment, moment, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("touched", [[], [37], [0, 36], [15, 16, 200]])
def test_few_blocks_are_visited(draw, float64_sums, touched):
    """None, one or two, and at the ends; all others stay as they are, to the bit."""
    given = draw(7, 128, 205, 6)
    counts = np.isin(np.arange(205), touched).astype(np.int32)
    given = given._replace(offsets=jnp.asarray(np.append(0, np.cumsum(counts)), jnp.int32))
    order, visited = tpu._visits(given.offsets)
    blocks = sorted({row // 16 for row in touched})
    np.testing.assert_array_equal(order[: len(blocks)], blocks)
    np.testing.assert_array_equal(np.sort(order), np.arange(13))
    assert visited == max(len(blocks), 2)
    table, last = setting(given, 2, jnp.bfloat16)
    moved = move_compiled(table, last, given)
    params, moment, rows = expected(table, last, given, float64_sums)
    np.testing.assert_allclose(moved.params, params, atol=1e-5)
    np.testing.assert_allclose(moved.moment.astype(jnp.float32), moment, rtol=1e-2, atol=1e-6)
    for before, after in zip(table, moved, strict=True):
        np.testing.assert_array_equal(before[~rows], after[~rows])


def test_several_tables(draw, float64_sums):
    """Tables of other widths and weights share one list."""
    wide, narrow = draw(12, 128, 40, 90), draw(12, 1, 40, 90)
    (first, last), (second, _) = setting(wide, 2), setting(narrow, 0)
    both = tpu.row_adam(
        (first, second),
        last,
        (wide.source, narrow.source),
        wide.indices,
        (wide.weights, narrow.weights),
        wide.offsets,
        SCHEDULE,
        (None, None),
        interpret=True,
    )
    narrow = wide._replace(source=narrow.source, weights=narrow.weights)
    for moved, table, given in zip(both, (first, second), (wide, narrow), strict=True):
        params, _, _ = expected(table, last, given, float64_sums)
        np.testing.assert_allclose(moved.params, params, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 256, 64, 256), (37, 200, 71, 300), (9, 1, 1, 40)])
def test_norm_of_the_gradient(draw, float64_sums, shape):
    given = draw(*shape)
    expected = 2 * np.sum(float64_sums(given) ** 2)
    sources, weights = (given.source,) * 2, (given.weights, -given.weights)
    operands = sources, given.indices, weights, given.offsets
    found = squares_tpu.row_squares(*operands, interpret=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_norm_of_the_gradient_by_definition(draw, float64_sums):
    given = draw(16, 8, 12, 50)
    operands = (given.source,), given.indices, (given.weights,), given.offsets
    expected = np.sum(float64_sums(given) ** 2)
    np.testing.assert_allclose(row_squares(*operands), expected, rtol=1e-5)


def test_a_name_insists(draw):
    given = draw(12, 128, 40, 90)
    table, last = setting(given, 2)
    with pytest.raises(ValueError, match="(?i)interpret"):
        row_adam(*alone(table, last, given), implementation="pallas_tpu")
