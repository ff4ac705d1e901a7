"""The GPU kernels without a GPU: values in the interpreter, and lowering at the size of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# jax 0.10.2 and 0.12 export it from here alone.
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jaxdiff.kernels.encode_marks import encode_marks
from jaxdiff.kernels.encode_marks import gpu as marks_gpu
from jaxdiff.kernels.gathered_dots import gathered_dots
from jaxdiff.kernels.gathered_dots import gpu as dots_gpu
from jaxdiff.kernels.row_adam import Schedule, Table, row_adam, row_squares, squares_gpu
from jaxdiff.kernels.row_adam import gpu as adam_gpu
from jaxdiff.kernels.weighted_gather import gpu as gather_gpu
from jaxdiff.kernels.weighted_gather import weighted_gather

SIMULATED = InterpretGPUParams()
ROWS, WIDTH, LATENTS, ENTRIES = 4096, 4608, 18432, 102400


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def row_list(source, groups, dtype=jnp.float32):
    return (
        array(source, WIDTH, dtype=dtype),
        array(ENTRIES, dtype=jnp.int32),
        array(ENTRIES),
        array(groups + 1, dtype=jnp.int32),
    )


def lowered(function, *operands) -> str:
    traced = jax.jit(function).trace(*operands)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def kernels_alone(text, count):
    """Checks that so many kernels do it, and no loop of the definition, which GPUs wait for."""
    assert text.count("custom_call @mosaic_gpu") == count
    assert "stablehlo.while" not in text


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weighted_gather_lowers(dtype):
    assert "mosaic_gpu" in lowered(weighted_gather, *row_list(LATENTS, ROWS, dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_row_adam_lowers(dtype):
    """Tables of a step: one as wide as its rows, and one of a single column."""
    wide = Table(array(LATENTS, WIDTH), array(LATENTS, WIDTH, dtype=dtype), array(LATENTS, 2))
    bias = Table(array(LATENTS, 1), array(LATENTS, 1, dtype=dtype))
    source, indices, weights, offsets = row_list(ROWS, LATENTS)

    def step(tables, last, step, rate, *given):
        sources, indices, weights, offsets, pull = given
        how, weights = Schedule(step, rate, rate, step), (weights, weights)
        return row_adam(tables, last, sources, indices, weights, offsets, how, (pull, None))

    numbers = array(LATENTS, dtype=jnp.int32), array(dtype=jnp.int32), array()
    given = (source, array(ROWS, 1)), indices, weights, offsets, array(LATENTS, 2)
    kernels_alone(lowered(step, (wide, bias), *numbers, *given), 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_row_squares_lowers(dtype):
    """Tables of a step: one as wide as its rows, and one of a single column."""
    source, indices, weights, offsets = row_list(ROWS, LATENTS, dtype)

    def norm(source, ones, indices, weights, offsets):
        return row_squares((source, ones), indices, (weights, weights), offsets)

    kernels_alone(lowered(norm, source, array(ROWS, 1), indices, weights, offsets), 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_encode_marks_lowers(dtype):
    vectors = array(LATENTS), array(LATENTS), array(), (array(ROWS), array(LATENTS))

    def mark(*operands):
        return encode_marks(*operands, dtype=dtype)

    text = lowered(mark, array(ROWS, WIDTH), array(LATENTS, WIDTH), *vectors)
    assert "mosaic_gpu" in text
    assert f"{ROWS}x{LATENTS}xf32" not in text


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gathered_dots_lowers(dtype):
    indices = array(ENTRIES, dtype=jnp.int32)

    def multiply(*operands):
        return gathered_dots(*operands, dtype=dtype)

    sides = array(LATENTS, WIDTH), indices, array(ROWS, WIDTH, dtype=dtype), indices
    assert "mosaic_gpu" in lowered(multiply, *sides, array(dtype=jnp.int32))


def test_weighted_gather(draw, float64_sums):
    given = draw(7, 200, 4, 30)
    out = gather_gpu.weighted_gather(*given, interpret=SIMULATED)
    np.testing.assert_allclose(out, float64_sums(given), atol=1e-5)


@pytest.mark.parametrize("width, parts", [(256, 2), (1, 1)])
def test_row_adam(draw, float64_sums, width, parts):
    given = draw(7, width, 3, 12)
    rng = np.random.default_rng(0)
    params, moment = rng.normal(size=(3, width)), rng.random((3, width))
    moment[1] = 0
    squares, pull = np.full((3, parts), -1.0), rng.normal(size=(3, parts))
    (moved,) = adam_gpu.row_adam(
        (Table(*(jnp.asarray(a, jnp.float32) for a in (params, moment, squares))),),
        jnp.asarray([1, 2, 3], jnp.int32),
        (given.source,),
        given.indices,
        (given.weights,),
        given.offsets,
        Schedule(jnp.int32(5), jnp.float32(0.1), jnp.float32(0.7), jnp.int32(100)),
        (jnp.asarray(pull, jnp.float32),),
        interpret=SIMULATED,
    )
    touched = (np.diff(np.asarray(given.offsets)) > 0)[:, None]
    gradient = 0.7 * (float64_sums(given) + np.repeat(pull, width // parts, axis=1) * params)
    second = 0.999 ** np.array([[4], [3], [2]]) * moment + 0.001 * gradient**2
    stepped = params - 0.1 * gradient / (np.sqrt(second / (1 - 0.999**5)) + 1e-8)
    params = np.where(touched, stepped, params)
    np.testing.assert_allclose(moved.params, params, atol=1e-5)
    np.testing.assert_allclose(moved.moment, np.where(touched, second, moment), 1e-5, 1e-9)
    squares = np.where(touched, np.sum(params.reshape(3, parts, -1) ** 2, axis=-1), squares)
    np.testing.assert_allclose(moved.squares, squares, rtol=1e-5, atol=1e-6)
    assert 0 < touched.sum() < 3


def test_row_squares(draw, float64_sums):
    """Three pieces of a row, and a table of one column; entries of no group are left out."""
    wide, narrow = draw(7, 384, 4, 20), draw(7, 1, 4, 20)
    narrow = wide._replace(source=narrow.source, weights=-narrow.weights)
    weights = wide.weights, narrow.weights
    found = squares_gpu.row_squares(
        (wide.source, narrow.source), wide.indices, weights, wide.offsets, interpret=SIMULATED
    )
    expected = sum(np.sum(float64_sums(given) ** 2) for given in (wide, narrow))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_encode_marks(monkeypatch, dtype):
    """Two chunks, the last one and the latents filled up; whole numbers, so that sums are exact."""
    monkeypatch.setattr(marks_gpu, "_KEYS", 32 * 130)
    rng = np.random.default_rng(0)
    x, W = (rng.integers(-2, 3, shape).astype(np.float32) for shape in ((37, 8), (130, 8)))
    b, norms = rng.integers(-2, 3, 130).astype(np.float32), rng.random(130) > 0.1
    x[33, 2] = np.nan
    keys = (x @ W.T + b) * norms
    by_row, by_latent = (rng.choice([0, 1, 2], n).astype(np.float32) for n in keys.shape)
    slack = by_row[:, None] * by_latent
    words, count = marks_gpu.encode_marks(
        *(jnp.asarray(a, jnp.float32) for a in (x, W, b, norms)),
        jnp.float32(6),
        (jnp.asarray(by_row), jnp.asarray(by_latent)),
        dtype=dtype,
        interpret=SIMULATED,
    )
    marks = np.zeros((64, 130), bool)
    marks[:37] = keys + slack >= 6
    bits = marks.reshape(2, 32, 130) * 2 ** np.arange(32, dtype=np.uint32)[None, :, None]
    np.testing.assert_array_equal(words, bits.sum(axis=1))
    assert np.sum(keys >= 6) > count == np.sum(keys - slack >= 6) > 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gathered_dots(dtype):
    rng = np.random.default_rng(0)
    sides = [jnp.asarray(rng.normal(size=(n, 200)), jnp.float32) for n in (5, 6)]
    rows, others = (jnp.asarray(rng.integers(0, n, 7), jnp.int32) for n in (5, 6))
    sides[0] = sides[0].at[rows[0]].set(jnp.nan)
    left, right = (np.asarray(a.astype(dtype).astype(jnp.float32), np.float64) for a in sides)
    expected = np.sum(left[rows] * right[others], axis=1)
    found = dots_gpu.gathered_dots(
        sides[0], rows, sides[1], others, jnp.int32(5), dtype=dtype, interpret=SIMULATED
    )
    np.testing.assert_allclose(found, np.append(expected[:5], [0, 0]), atol=2e-5)
    assert 0 < np.isnan(expected).sum() < 5
