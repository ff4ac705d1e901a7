"""Group max: of each group of neighbours, the latent with the largest key, by brute force."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from jaxdiff.config import DictionaryConfig
from jaxdiff.dictionaries import code_norms, encode, fold
from jaxdiff.errors import JaxdiffError


def test_each_group_has_its_largest(variant):
    config, d, x = variant.problem(activation="group_max", k=4, aux=0.0)
    parts, gradient = variant.loss_of(config, d, x)
    p, X = variant.float64(d), np.asarray(x, np.float64)
    f = np.maximum(np.einsum("bmd,mdl->bl", X, p["W_enc"]) + p["b_enc"], 0)
    keys = f * np.asarray(code_norms(d), np.float64)
    kept = np.zeros_like(f)
    for row in range(len(f)):
        for group in range(4):
            inside = range(3 * group, 3 * group + 3)
            best = max(inside, key=lambda j: keys[row, j])
            kept[row, best] = f[row, best]
    np.testing.assert_allclose(jax.jit(encode)(d, x), kept, rtol=1e-5, atol=1e-6)
    error = X - np.einsum("bl,lmd->bmd", kept, p["W_dec"]) - p["b_dec"]
    variant.close(parts.loss, np.linalg.norm(error, axis=-1).mean())
    variant.close(parts.l0, (kept > 0).sum() / len(x))
    unit = error / np.linalg.norm(error, axis=-1, keepdims=True) / error[..., 0].size
    variant.close(gradient.W_dec, -np.einsum("bl,bmd->lmd", kept, unit))


def test_ties_and_silence(variant):
    _, d, x = variant.problem(activation="group_max", k=4)
    d = dataclasses.replace(d, W_enc=jnp.zeros_like(d.W_enc), code_norm="none")
    bias = jnp.array([1.0, 1, 0, -1, -1, -1, 0, 0, 0, -1, 2, 2])
    f = encode(dataclasses.replace(d, b_enc=bias), x)
    expected = np.array([1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0])
    np.testing.assert_array_equal(f, np.broadcast_to(expected, f.shape))


@pytest.mark.parametrize("k", [2.5, 5.0])
def test_groups_must_fit(k):
    with pytest.raises(pydantic.ValidationError, match="divides 12 latents"):
        DictionaryConfig(latents=12, activation="group_max", k=k)


def test_folding_a_crosscoder_is_refused(variant):
    _, d, _ = variant.problem(activation="group_max", k=4)
    with pytest.raises(JaxdiffError, match="ranks by decoder norms"):
        fold(d, jnp.zeros((2, 5)), jnp.ones(2))
