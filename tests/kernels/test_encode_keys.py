"""The fused encoder and the counts at pivots, against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxdiff.kernels.encode_keys import encode_keys, tpu, xla
from jaxdiff.kernels.reaching import reaching
from jaxdiff.kernels.reaching import tpu as counting_tpu
from jaxdiff.kernels.reaching import xla as counting_xla

COUNTS = {
    "xla": counting_xla.reaching,
    "pallas_tpu": functools.partial(counting_tpu.reaching, interpret=True),
}
ENCODERS = {
    "xla": xla.encode_keys,
    "pallas_tpu": functools.partial(tpu.encode_keys, interpret=True),
}


def pattern(keys) -> np.ndarray:
    return np.where(keys > 0, keys, 0).astype(np.float32).view(np.int32)


def pivots(count) -> np.ndarray:
    """0, the pattern of infinity, and others between, in no order."""
    rng = np.random.default_rng(1)
    some = np.abs(rng.normal(size=count)).astype(np.float32).view(np.int32)
    some[:2] = 0, np.float32(np.inf).view(np.int32)
    return some


@pytest.mark.parametrize("shape, count", [((256, 1024), 2), ((300, 1030), 5), ((1, 1), 3)])
@pytest.mark.parametrize("name", COUNTS)
def test_counts(name, shape, count):
    keys = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    if keys.size > 4:
        keys[0, :4] = np.nan, np.inf, -np.inf, 0
        keys[-1, -1] = 0.5
    wanted = np.append(pivots(count), pattern(np.full(1, 0.5)))
    expected = [np.sum(pattern(keys) >= pivot) for pivot in wanted]
    found = COUNTS[name](jnp.asarray(keys), jnp.asarray(wanted))
    np.testing.assert_array_equal(found, expected)


def operands(rows, inner, latents, dtype=jnp.float32):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(rows, inner)), dtype)
    W = jnp.asarray(rng.normal(size=(inner, latents)) / inner**0.5, dtype)
    b = jnp.asarray(rng.normal(size=latents) / 9, jnp.float32)
    norms = rng.random(latents).astype(np.float32)
    norms[0] = 0
    return x, W, b, jnp.asarray(norms)


# Rows, inner size, latents: aligned, odd, and more than a slab of rows.
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(16, 256, 1024), (37, 100, 1030), (300, 3, 7)])
@pytest.mark.parametrize("name", ENCODERS)
def test_keys(name, shape, dtype):
    given = operands(*shape, dtype)
    wanted = pivots(4)
    keys, counts = ENCODERS[name](*given, jnp.asarray(wanted))
    x, W, b, norms = (np.asarray(a.astype(jnp.float32), np.float64) for a in given)
    np.testing.assert_allclose(keys, np.maximum(x @ W + b, 0) * norms, atol=2e-6)
    # Counted are the very keys that are returned.
    expected = [np.sum(pattern(np.asarray(keys)) >= pivot) for pivot in wanted]
    np.testing.assert_array_equal(counts, expected)


def test_gradient_of_keys():
    given = operands(6, 5, 9)
    pulled = np.random.default_rng(3).normal(size=(6, 9))

    def product(*some):
        keys, _ = encode_keys(*some, jnp.zeros(1, jnp.int32))
        return jnp.sum(keys * jnp.asarray(pulled, jnp.float32))

    found = jax.grad(product, argnums=(0, 1, 2, 3))(*given)
    x, W, b, norms = (np.asarray(a, np.float64) for a in given)
    pre = x @ W + b
    of_pre = pulled * norms * (pre > 0)
    expected = of_pre @ W.T, x.T @ of_pre, of_pre.sum(0), np.sum(pulled * np.maximum(pre, 0), 0)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_name_insists():
    keys, wanted = jnp.ones((8, 128)), jnp.zeros(1, jnp.int32)
    with pytest.raises(ValueError, match="(?i)interpret"):
        reaching(keys, wanted, implementation="pallas_tpu")
    with pytest.raises(ValueError, match="(?i)interpret"):
        encode_keys(*operands(8, 128, 128), wanted, "pallas_tpu")
