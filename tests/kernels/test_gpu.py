"""The GPU kernels without a GPU: values in the interpreter, and lowering at the size of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# jax 0.10.2 and 0.12 export it from here alone.
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jaxdiff.kernels.encode_keys import encode_keys
from jaxdiff.kernels.encode_keys import gpu as encode_gpu
from jaxdiff.kernels.reaching import gpu as reaching_gpu
from jaxdiff.kernels.reaching import reaching
from jaxdiff.kernels.row_adam import Schedule, Table, row_adam
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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weighted_gather_lowers(dtype):
    assert "mosaic_gpu" in lowered(weighted_gather, *row_list(LATENTS, ROWS, dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_row_adam_lowers(dtype):
    tables = Table(array(LATENTS, WIDTH), array(LATENTS, WIDTH, dtype=dtype), array(LATENTS, 2))
    source, indices, weights, offsets = row_list(ROWS, LATENTS)

    def step(table, last, step, rate, *given):
        source, indices, weights, offsets = given
        how = Schedule(step, rate, rate)
        return row_adam((table,), last, (source,), indices, (weights,), offsets, how)

    numbers = array(LATENTS, dtype=jnp.int32), array(dtype=jnp.int32), array()
    text = lowered(step, tables, *numbers, source, indices, weights, offsets)
    assert "mosaic_gpu" in text


def test_counts_lower():
    pivots = array(20, dtype=jnp.int32)
    assert "mosaic_gpu" in lowered(reaching, array(ROWS, LATENTS), pivots)
    operands = array(ROWS, WIDTH), array(WIDTH, LATENTS), array(LATENTS), array(LATENTS)
    assert "mosaic_gpu" in lowered(encode_keys, *operands, pivots)


def test_weighted_gather(draw, float64_sums):
    given = draw(7, 200, 4, 30)
    out = gather_gpu.weighted_gather(*given, interpret=SIMULATED)
    np.testing.assert_allclose(out, float64_sums(given), atol=1e-5)


def test_row_adam(draw, float64_sums):
    given = draw(7, 256, 3, 12)
    rng = np.random.default_rng(0)
    params, moment = rng.normal(size=(3, 256)), rng.random((3, 256))
    moment[1] = 0
    squares = np.full((3, 2), -1.0)
    (moved,) = adam_gpu.row_adam(
        (Table(*(jnp.asarray(a, jnp.float32) for a in (params, moment, squares))),),
        jnp.asarray([1, 2, 3], jnp.int32),
        (given.source,),
        given.indices,
        (given.weights,),
        given.offsets,
        Schedule(jnp.int32(5), jnp.float32(0.1), jnp.float32(0.7)),
        interpret=SIMULATED,
    )
    touched = (np.diff(np.asarray(given.offsets)) > 0)[:, None]
    gradient = 0.7 * float64_sums(given)
    second = 0.999 ** np.array([[4], [3], [2]]) * moment + 0.001 * gradient**2
    stepped = params - 0.1 * gradient / (np.sqrt(second / (1 - 0.999**5)) + 1e-8)
    params = np.where(touched, stepped, params)
    np.testing.assert_allclose(moved.params, params, atol=1e-5)
    np.testing.assert_allclose(moved.moment, np.where(touched, second, moment), 1e-5, 1e-9)
    squares = np.where(touched, np.sum(params.reshape(3, 2, 128) ** 2, axis=-1), squares)
    np.testing.assert_allclose(moved.squares, squares, rtol=1e-5)
    assert 0 < touched.sum() < 3


def test_counts():
    keys = np.random.default_rng(0).normal(size=(5, 300)).astype(np.float32)
    keys[0, :4] = np.nan, np.inf, -np.inf, 0.5
    levels = np.append(np.linspace(0, 3, 17), np.inf).astype(np.float32).view(np.int32)
    found = reaching_gpu.reaching(jnp.asarray(keys), jnp.asarray(levels), interpret=SIMULATED)
    patterns = np.where(keys > 0, keys, 0).view(np.int32)
    np.testing.assert_array_equal(found, [np.sum(patterns >= level) for level in levels])


def test_encode_keys_counts_its_keys():
    rng = np.random.default_rng(1)
    x, W = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((5, 8), (8, 40)))
    levels = jnp.asarray(np.array([0, 1], np.float32).view(np.int32))
    operands = x, W, jnp.zeros(40), jnp.ones(40), levels
    keys, counts = encode_gpu.encode_keys(*operands, interpret=SIMULATED)
    np.testing.assert_allclose(keys, np.maximum(np.asarray(x) @ np.asarray(W), 0), atol=1e-5)
    np.testing.assert_array_equal(counts, [200, np.sum(np.asarray(keys) >= 1)])
