"""Properties of a dictionary: initialisation, symmetries, one model, inference rules, folding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import DictionaryConfig
from jaxdiff.dictionaries import (
    Dictionary,
    code_norms,
    decoder_norms,
    fold,
    init,
    loss,
)
from jaxdiff.dictionaries import decode as plain_decode
from jaxdiff.dictionaries import encode as plain_encode
from jaxdiff.errors import JaxdiffError

encode = jax.jit(plain_encode)
decode = jax.jit(plain_decode, static_argnames=("bias", "dtype"))
NORMS = ("crosscoder", "sae", "mixed", "none", "decoupled")
SHAPE, LATENTS, ROWS = (2, 6), 16, 10


def random_dictionary(activation="batch_topk", norm="crosscoder", models=2, threshold=0.8):
    rng = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return Dictionary(
        W_enc=array(models, 6, LATENTS),
        b_enc=array(LATENTS),
        W_dec=array(LATENTS, models, 6),
        b_dec=array(models, 6),
        threshold=jnp.full((models,) if norm == "decoupled" else (), threshold, jnp.float32),
        activation=activation,
        k=3.0,
        code_norm=norm,
    )


def rows(models=2):
    return jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, models, 6)), jnp.float32)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@functools.partial(jax.jit, static_argnames="aux")
def objective(d, x, aux=0.0):
    config = DictionaryConfig(latents=LATENTS, activation=d.activation, k=d.k, aux=aux)
    idle = jnp.zeros(LATENTS, jnp.int32)
    return loss(d, x, config=config, k=jnp.float32(d.k), l1=jnp.float32(0.1), idle=idle)


@pytest.mark.parametrize("same", [True, False])
def test_init(same, key):
    config = DictionaryConfig(latents=LATENTS, decoder_norm=0.3, same_init=same)
    d = init(config, SHAPE, key=key)
    close(decoder_norms(d), np.full((LATENTS, 2), 0.3))
    close(d.W_enc, np.transpose(d.W_dec, (1, 2, 0)), 0)
    assert (np.asarray(d.W_dec[:, 0]) == np.asarray(d.W_dec[:, 1])).all() == same
    assert len({tuple(row) for row in np.asarray(d.W_dec[:, 0])}) == LATENTS
    assert not d.b_enc.any() and not d.b_dec.any()


def test_code_norms_of_a_known_dictionary():
    norms = {"crosscoder": 7.0, "sae": 5.0, "mixed": 5.7, "none": 1.0}
    W = jnp.zeros((LATENTS, 2, 6)).at[:, 0, 0].set(3.0).at[:, 1, 1].set(-4.0)
    d = dataclasses.replace(random_dictionary(), W_dec=W)
    for kind, value in norms.items():
        close(code_norms(dataclasses.replace(d, code_norm=kind)), np.full(LATENTS, value))
    close(code_norms(dataclasses.replace(d, code_norm="decoupled")), [[3.0, 4.0]] * LATENTS)


@pytest.mark.parametrize("norm", NORMS)
def test_batch_topk_inference_keeps_keys_above_the_threshold(norm):
    d = random_dictionary(norm=norm)
    x = rows()
    pre = np.einsum("rmd,mdl->rl", x, d.W_enc) + np.asarray(d.b_enc)
    f = np.maximum(pre, 0)
    if norm == "decoupled":
        f = np.repeat(f[:, None], 2, axis=1)
        keys = f * np.asarray(decoder_norms(d)).T
    else:
        keys = f * np.asarray(code_norms(d))
    close(encode(d, x), np.where(keys > 0.8, f, 0))


def test_topk_keeps_k_in_every_row():
    d = random_dictionary("topk")
    f = encode(d, rows())
    assert (np.sum(np.asarray(f) > 0, axis=1) <= 3).all() and int((f > 0).sum()) > 2 * ROWS
    positive = np.asarray(encode(dataclasses.replace(d, activation="relu"), rows()))
    keys = positive * np.asarray(code_norms(d))
    for row, kept in zip(keys, np.asarray(f) > 0, strict=True):
        assert set(np.flatnonzero(kept)) <= set(np.argsort(-row)[:3])


def test_decode_adds_what_the_models_share():
    d, f = random_dictionary(), jnp.asarray(np.random.default_rng(2).random((ROWS, LATENTS)))
    f = f.astype(jnp.float32)
    expected = np.einsum("rl,lmd->rmd", f, d.W_dec)
    close(decode(d, f), expected + np.asarray(d.b_dec))
    close(decode(d, f, bias=False), expected)


@pytest.mark.parametrize("activation", ["batch_topk", "relu"])
def test_permuting_latents_permutes_codes_and_nothing_else(activation):
    d, x = random_dictionary(activation), rows()
    order = np.random.default_rng(3).permutation(LATENTS)
    moved = dataclasses.replace(
        d, W_enc=d.W_enc[..., order], b_enc=d.b_enc[order], W_dec=d.W_dec[order]
    )
    close(encode(moved, x), encode(d, x)[:, order])
    close(decode(moved, encode(moved, x)), decode(d, encode(d, x)))
    close(objective(moved, x)[0], objective(d, x)[0])


@pytest.mark.parametrize("activation", ["batch_topk", "relu", "topk"])
def test_one_model_is_a_sparse_autoencoder(activation):
    d, x = random_dictionary(activation, models=1), rows(1)
    W, V = np.asarray(d.W_enc[0], np.float64), np.asarray(d.W_dec[:, 0], np.float64)
    flat = np.asarray(x[:, 0], np.float64)
    f = np.maximum(flat @ W + np.asarray(d.b_enc), 0)
    keys = f * np.linalg.norm(V, axis=1)
    if activation == "batch_topk":
        kept = keys >= np.sort(keys.ravel())[-3 * ROWS]
    elif activation == "topk":
        kept = keys >= np.sort(keys, axis=1)[:, -3:-2]
    else:
        kept = keys > 0
    error = flat - (f * kept) @ V - np.asarray(d.b_dec[0])
    value = np.linalg.norm(error, axis=1).mean()
    if activation == "relu":
        value += 0.1 * keys.sum() / ROWS
    close(objective(d, x)[0], value)


def test_identical_models_count_once():
    """Two copies of an autoencoder, each with half the encoder: same codes, same loss."""
    one, x = random_dictionary(norm="none", models=1), rows(1)
    two = dataclasses.replace(
        one,
        W_enc=jnp.concatenate([one.W_enc / 2] * 2),
        W_dec=jnp.concatenate([one.W_dec] * 2, axis=1),
        b_dec=jnp.concatenate([one.b_dec] * 2),
    )
    both = jnp.concatenate([x, x], axis=1)
    close(encode(two, both), encode(one, x))
    close(objective(two, both)[0], objective(one, x)[0])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ["batch_topk", "relu", "jumprelu"])
def test_fold(activation, norm):
    d = random_dictionary(activation, norm)
    if activation == "jumprelu":
        shape = (LATENTS, 2) if norm == "decoupled" else (LATENTS,)
        d = dataclasses.replace(d, threshold=jnp.linspace(0.1, 1, LATENTS * 2)[: np.prod(shape)])
        d = dataclasses.replace(d, threshold=d.threshold.reshape(shape))
    rng = np.random.default_rng(4)
    mean = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    scale = jnp.array([0.25, 3.0])
    raw = rows()
    x = (raw - mean[None]) * scale[None, :, None]
    folded = fold(d, mean, scale)
    f = encode(d, x)
    assert folded.activation == ("relu" if activation == "relu" else "jumprelu")
    assert 0 < int((f > 0).sum()) < f.size
    close(encode(folded, raw), f, 1e-4)
    close(
        decode(folded, encode(folded, raw)), decode(d, f) / scale[None, :, None] + mean[None], 1e-4
    )


def test_folding_a_topk_crosscoder_is_refused():
    with pytest.raises(JaxdiffError, match="ranks by decoder norms"):
        fold(random_dictionary("topk"), jnp.zeros(SHAPE), jnp.ones(2))


def test_a_latent_without_decoder_stays_silent_after_folding():
    d = random_dictionary()
    d = dataclasses.replace(d, W_dec=d.W_dec.at[3].set(0.0))
    f = encode(fold(d, jnp.zeros(SHAPE), jnp.ones(2)), rows())
    assert not f[:, 3].any() and f.any()


def test_gradient_is_finite_where_the_error_is_zero():
    d = dataclasses.replace(random_dictionary("relu"), b_enc=jnp.full(LATENTS, -1e6))
    x = jnp.broadcast_to(d.b_dec[None], (ROWS, *SHAPE))
    (value, _), gradient = jax.value_and_grad(objective, has_aux=True)(d, x)
    assert float(value) == 0
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_bfloat16_products_are_summed_in_float32():
    d, f = random_dictionary(), jnp.ones((1, LATENTS))
    low = decode(d, f, dtype=jnp.bfloat16)
    assert low.dtype == jnp.float32
    assert 0 < float(jnp.abs(low - decode(d, f)).max()) < 0.1
