"""Marks and counts of the highest keys against NumPy, on operands whose sums are exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxdiff.kernels.encode_marks import encode_marks, tpu, xla
from jaxdiff.kernels.product import chunks

IMPLEMENTATIONS = {
    "xla": xla.encode_marks,
    "pallas_tpu": functools.partial(tpu.encode_marks, interpret=True),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Several chunks of the definition, and several tiles of the kernel's rows."""
    monkeypatch.setattr(xla, "chunks", lambda x, latents: chunks(x, latents, 100_000))
    monkeypatch.setattr(tpu, "_ROWS", 256)


def whole_numbers(rows, inner, latents):
    """Draws operands of which the order and the dtype of the product do not matter, and keys."""
    rng = np.random.default_rng(rows)
    x, W = (rng.integers(-2, 3, (n, inner)).astype(np.float32) for n in (rows, latents))
    b = rng.integers(-2, 3, latents).astype(np.float32)
    norms = rng.choice([0, 0.5, 1, 2], latents).astype(np.float32)
    x[rows // 2, 0] = np.nan
    return tuple(jnp.asarray(a) for a in (x, W, b, norms)), (x @ W.T + b) * norms


def none(rows, latents):
    """Returns no slack."""
    return jnp.zeros(rows), jnp.zeros(latents)


def marked(words, rows) -> np.ndarray:
    bits = np.asarray(words)[:, None, :] >> np.arange(32, dtype=np.uint32)[None, :, None] & 1
    bits = bits.reshape(-1, words.shape[1]).astype(bool)
    assert bits.shape[0] == rows + -rows % 32
    assert not bits[rows:].any()
    return bits[:rows]


# Rows, inner size, latents: aligned; two tiles along each axis, each cut off; one part of a word.
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(64, 128, 1024), (300, 900, 1030), (5, 3, 40)])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_marks(name, shape, dtype):
    operands, keys = whole_numbers(*shape)
    ranked = np.sort(keys[~np.isnan(keys)])
    pivot = ranked[-ranked.size // 10]
    rng = np.random.default_rng(1)
    by_row, by_latent = (rng.choice([0, 0.5, 2], n).astype(np.float32) for n in keys.shape)
    slack = by_row[:, None] * by_latent
    given = jnp.float32(pivot), (jnp.asarray(by_row), jnp.asarray(by_latent))
    words, count = IMPLEMENTATIONS[name](*operands, *given, dtype=dtype)
    np.testing.assert_array_equal(marked(words, shape[0]), keys + slack >= pivot)
    assert count == np.sum(keys - slack >= pivot)
    assert 0 < np.sum(keys - slack >= pivot) < np.sum(keys >= pivot)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_nothing_reaches(name):
    operands, keys = whole_numbers(40, 8, 130)
    above = jnp.float32(np.nanmax(keys) + 0.5)
    words, count = IMPLEMENTATIONS[name](*operands, above, none(40, 130), dtype=jnp.float32)
    assert count == 0
    assert not np.any(words)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_factors_are_rounded_to_bfloat16_alone(name):
    """Both are 1 in bfloat16 and not in float32."""
    x, W = jnp.full((32, 128), 1 + 2**-9), jnp.full((128, 128), 1 + 2**-10)
    product = 128 * (1 + 2**-9) * (1 + 2**-10)
    for dtype, reached in ((jnp.float32, product), (jnp.bfloat16, 128.0)):
        for off, expected in ((-0.01, 0xFFFFFFFF), (0.01, 0)):
            operands = x, W, jnp.zeros(128), jnp.ones(128), jnp.float32(reached + off)
            words, _ = IMPLEMENTATIONS[name](*operands, none(32, 128), dtype=dtype)
            assert np.all(words == np.uint32(expected))


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_float32_insists_on_its_precision(platform):
    """By default, accelerators would round the factors."""
    operands, _ = whole_numbers(32, 128, 128)
    traced = jax.jit(encode_marks).trace(*operands, jnp.float32(1), none(32, 128))
    dots = [line for line in str(traced.jaxpr).splitlines() if "precision=" in line]
    assert dots and all("HIGHEST" in line for line in dots)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    kernel = {"cpu": "stablehlo.while", "tpu": "tpu_custom_call", "cuda": "mosaic_gpu"}
    assert kernel[platform] in text


def test_no_array_of_keys(monkeypatch):
    """The definition holds a chunk of keys, whatever the batch."""
    monkeypatch.undo()
    rows, latents = 2048, 32768
    shapes = (rows, 8), (latents, 8), (latents,), (latents,), ()
    operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = jax.jit(encode_marks).lower(*operands, jax.eval_shape(lambda: none(rows, latents)))
    memory = program.compile().memory_analysis()
    assert memory.temp_size_in_bytes < rows * latents * 4 / 3


def test_more_keys_than_counts_hold():
    shapes = (1 << 16, 2), (1 << 15, 2), (1 << 15,), (1 << 15,), ()
    operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    with pytest.raises(ValueError, match="65536 rows x 32768 latents"):
        jax.eval_shape(encode_marks, *operands, none(1 << 16, 1 << 15))


def test_a_name_insists():
    operands, _ = whole_numbers(32, 128, 128)
    with pytest.raises(ValueError, match="(?i)interpret"):
        pivot = jnp.float32(1)
        encode_marks(*operands, pivot, none(32, 128), implementation="pallas_tpu")
