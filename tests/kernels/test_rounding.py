"""Rounding of bfloat16 second moments: right on average, and the same wherever a row is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

# jax 0.10.2 and 0.12 export it from here alone.
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jaxdiff.kernels.row_adam import Schedule, Table, gpu, move, tpu, xla
from jaxdiff.kernels.row_adam.rounding import noise_of, rounded

pytestmark = pytest.mark.usefixtures("few_classes")
FUNCTIONS = {
    "xla": xla.row_adam,
    "pallas_tpu": functools.partial(tpu.row_adam, interpret=True),
    "pallas_gpu": functools.partial(gpu.row_adam, interpret=InterpretGPUParams()),
}


def column(numbers):
    return jnp.asarray(numbers, jnp.int32)[:, None]


def schedule(step, rate=0.01, first=0):
    return Schedule(jnp.int32(step), jnp.float32(rate), jnp.float32(1), jnp.int32(first))


@pytest.fixture(scope="module")
def drawn():
    """Values over many octaves, and how far up each went in 64 steps, in spacings of bfloat16."""
    values = np.exp(np.random.default_rng(0).normal(size=(48, 256)) * 8).astype(np.float32)
    values[:8] = jnp.asarray(values[:8], jnp.bfloat16).astype(jnp.float32)
    rows, call = column(range(1000, 1048)), jax.jit(rounded)
    found = [call(jnp.asarray(values), step=jnp.int32(i), row=rows) for i in range(1, 65)]
    lower = (values.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)
    spacing = 2.0 ** (np.floor(np.log2(values.astype(np.float64))) - 7)
    return (values - lower) / spacing, (np.stack(found).astype(np.float64) - lower) / spacing


def test_the_mean_is_the_value(drawn):
    """Of all, of each row, column, step and part of the way, in standard errors of the mean."""
    part, went = drawn
    assert set(np.unique(went)) == {0.0, 1.0}
    assert not np.any(went[:, :8])
    error, variance = went - part, np.broadcast_to(part * (1 - part), went.shape)
    assert abs(error.sum()) < 3 * np.sqrt(variance.sum())
    for axes in ((0, 2), (0, 1), (1, 2)):
        with np.errstate(invalid="ignore"):
            scores = np.nan_to_num(error.sum(axes) / np.sqrt(variance.sum(axes)))
        assert np.max(np.abs(scores)) < 4.5
        assert 0.6 < np.mean(scores[scores != 0] ** 2) < 1.6
    order = np.argsort(part[8:].ravel())
    tenths = np.array_split(error[:, 8:].reshape(64, -1)[:, order], 10, axis=1)
    spread = np.array_split((part * (1 - part))[8:].ravel()[order], 10)
    for tenth, own in zip(tenths, spread, strict=True):
        assert abs(tenth.sum()) < 4 * np.sqrt(64 * own.sum())


def test_places_and_steps_are_independent():
    """Bits of neighbours, and of the same place a few steps on, agree as often as not."""
    steps, rows = jnp.arange(1, 33, dtype=jnp.int32)[:, None, None], column(range(48))[None]
    columns = jnp.arange(128, dtype=jnp.int32)[None, None, :]
    words = np.asarray(noise_of(steps, rows, jnp.broadcast_to(columns, (32, 48, 128))))
    bits = words[..., None] >> np.arange(16, 32, dtype=np.uint32) & 1
    assert np.max(np.abs(bits.mean((0, 1, 2)) - 0.5)) < 4 * 0.5 / words.size**0.5
    for axis in range(3):
        for apart in (1, 2, 16):
            other = np.roll(bits, apart, axis)
            agreeing = (bits == other).mean((0, 1, 2))
            assert np.max(np.abs(agreeing - 0.5)) < 4.5 * 0.5 / words.size**0.5


def test_what_is_not_finite_stays():
    patterns = np.uint32([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000, 0])
    values = jnp.asarray(patterns.view(np.float32))[None]
    for step in range(1, 9):
        found = rounded(values, step=jnp.int32(step), row=column([3])).astype(jnp.bfloat16)
        np.testing.assert_array_equal(found.astype(jnp.float32), values)


@pytest.mark.parametrize("first, gradient", [(1.0, 0.1), (1e-3, 0.045)])
def test_small_changes_are_kept(first, gradient):
    """A moment of 1 decays while gradients are small, one of 0.001 grows by a 1000th of 0.002."""
    steps, shape = 5000, (2, 256)
    table = Table(jnp.zeros(shape), jnp.full(shape, first, jnp.bfloat16))
    stuck = jnp.full(shape, first, jnp.bfloat16)

    def step(carry, i):
        table, stuck = carry
        ones = jnp.ones(2, jnp.int32)
        table = move(table, jnp.full(shape, gradient), ones, schedule(i))
        wide = Table(table.params, stuck.astype(jnp.float32))
        nearest = move(wide, jnp.full(shape, gradient), ones, schedule(i)).moment
        return (table, nearest.astype(jnp.bfloat16)), None

    numbers = jnp.arange(1, steps + 1, dtype=jnp.int32)
    (table, stuck), _ = jax.jit(lambda carry: lax.scan(step, carry, numbers))((table, stuck))
    expected = gradient**2 + 0.999**steps * (float(jnp.bfloat16(first)) - gradient**2)
    found = np.asarray(table.moment.astype(jnp.float32), np.float64)
    np.testing.assert_allclose(found.mean(), expected, rtol=0.01)
    assert found.std() < 0.1 * expected
    np.testing.assert_array_equal(stuck, jnp.full(shape, first, jnp.bfloat16))


def setting(draw, dtype, shape=(7, 384, 5, 12)):
    given = draw(*shape)
    rng, size = np.random.default_rng(0), (shape[2], shape[1])
    moment = jnp.asarray(rng.random(size), jnp.bfloat16).astype(dtype)
    table = Table(jnp.asarray(rng.normal(size=size), jnp.float32), moment)
    return table, jnp.asarray(rng.integers(0, 9, shape[2]), jnp.int32), given


def mover(name):
    """Returns a compiled call of an implementation: `(table, last, given, schedule)` to a table."""

    def call(table, last, given, how) -> Table:
        listed = (given.source,), given.indices, (given.weights,), given.offsets
        (table,) = FUNCTIONS[name]((table,), last, *listed, how, (None,))
        return table

    return jax.jit(call)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_kernels_round_alike(draw, name):
    """Each to the bits that the rule makes of its own float32 moments."""
    call, how = mover(name), schedule(9, first=100)
    table, last, given = setting(draw, jnp.bfloat16)
    wide = table._replace(moment=table.moment.astype(jnp.float32))
    narrow, wide = (call(t, last, given, how) for t in (table, wide))
    rule = rounded(wide.moment, step=how.step, row=100 + column(range(5)))
    touched = np.diff(np.asarray(given.offsets)) > 0
    np.testing.assert_array_equal(narrow.moment[touched], rule.astype(jnp.bfloat16)[touched])
    np.testing.assert_array_equal(narrow.moment[~touched], table.moment[~touched])
    np.testing.assert_array_equal(narrow.params, wide.params)
    assert np.any(narrow.moment[touched] != wide.moment.astype(jnp.bfloat16)[touched])


def test_a_part_of_the_rows_rounds_as_all_do(draw):
    """The definition's parts are those of every mesh, in the tests of the sparse step."""
    call = mover("pallas_tpu")
    table, last, given = setting(draw, jnp.bfloat16, (7, 128, 40, 90))
    expected = call(table, last, given, schedule(9))
    for first in (0, 20):
        some = given._replace(offsets=given.offsets[first : first + 21])
        own, waited = jax.tree.map(lambda a, at=first: a[at : at + 20], (table, last))
        found = call(own, waited, some, schedule(9, first=first))
        np.testing.assert_array_equal(found.moment, expected.moment[first : first + 20])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_moments_are_not_rounded(draw, name):
    """No program of theirs has a hash in it: nothing is taken for a bit pattern."""
    for dtype, rounds in ((jnp.float32, False), (jnp.bfloat16, True)):
        table, last, given = setting(draw, dtype)
        program = mover(name).trace(table, last, given, schedule(9)).jaxpr
        assert ("bitcast_convert_type" in str(program)) == rounds
