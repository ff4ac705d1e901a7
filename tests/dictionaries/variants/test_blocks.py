"""Shared and dedicated latents: ties and zeros hold through training; the cross term."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries import encode, reconstruction_loss
from jaxdiff.dictionaries.constraints import constrain
from jaxdiff.errors import JaxdiffError
from jaxdiff.training import fit


def trained(**settings):
    config = DictionaryConfig(latents=12, k=3, same_init=False, dead_after=100, **settings)
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(30, 32, 2, 5)).astype(np.float32)
    train = TrainConfig(steps=30, batch=32, lr=1e-2, warmup=0)
    return fit(config, train, batches, seed=0)[0]


def test_dedicated_latents_have_one_model():
    d = trained(dedicated=(3, 4))
    base, ft = slice(5, 8), slice(8, 12)
    assert not d.W_enc[1, :, base].any() and not d.W_dec[base, 1].any()
    assert not d.W_enc[0, :, ft].any() and not d.W_dec[ft, 0].any()
    for own in (d.W_enc[0, :, base], d.W_enc[1, :, ft], d.W_dec[base, 0], d.W_dec[ft, 1]):
        assert own.all()
    assert d.W_enc[:, :, :5].all() and d.W_dec[:5].all()
    # So they are blind to the other model.
    x = np.random.default_rng(1).normal(size=(20, 2, 5)).astype(np.float32)
    other = x.copy()
    other[:, 1] += 1
    rule = dataclasses.replace(d, activation="relu")
    f, moved = (np.asarray(jax.jit(encode)(rule, jnp.asarray(rows))) for rows in (x, other))
    assert (f[:, base] == moved[:, base]).all() and (f[:, ft] != moved[:, ft]).any()


def test_shared_latents_have_one_decoder_row():
    d = trained(shared=4)
    np.testing.assert_array_equal(d.W_dec[:4, 0], d.W_dec[:4, 1])
    assert (d.W_dec[4:, 0] != d.W_dec[4:, 1]).all()
    assert (d.W_enc[0, :, :4] != d.W_enc[1, :, :4]).all()  # Encoders are not tied.


@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_shared_latents_pay_their_part_of_the_penalty(variant, activation):
    settings = {"activation": activation, "shared": 4, "code_norm": "sae"}
    config, d, x = variant.problem(**settings, shared_penalty=0.1)
    whole = config.model_copy(update={"shared_penalty": 1.0})
    nothing = config.model_copy(update={"shared_penalty": 0.0})
    cheap, full, none = (variant.loss_of(c, d, x)[0] for c in (config, whole, nothing))
    assert 0 < float(none.sparsity) < float(cheap.sparsity) < float(full.sparsity)
    variant.close(cheap.sparsity, 0.1 * full.sparsity + 0.9 * none.sparsity)
    # The rest is what the first latents would pay alone.
    p = variant.float64(constrain(d, config))
    f = np.einsum("bmd,mdl->bl", np.asarray(x, np.float64), p["W_enc"]) + p["b_enc"]
    f = np.where(f > (p["threshold"] if activation == "jumprelu" else 0), f, 0)[:, :4]
    keys = f * np.sqrt(np.square(p["W_dec"][:4]).sum(axis=(1, 2)))
    first = np.tanh(4 * keys) if activation == "jumprelu" else keys
    variant.close(full.sparsity - none.sparsity, first.sum() / len(x), 1e-4)


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("cross", [-1.0, -0.4])
def test_cross_term(models, cross):
    rng = np.random.default_rng(0)
    e = rng.normal(size=(20, models, 5))
    pairs = [(m, n) for n in range(models) for m in range(n)]
    value = np.square(e).sum() + 2 * cross / (models - 1) * sum(
        (e[:, m] * e[:, n]).sum() for m, n in pairs
    )
    found = reconstruction_loss(jnp.asarray(e, jnp.float32), squared=True, cross=cross)
    assert float(found) == pytest.approx(value / (20 * models), rel=1e-5)
    if cross == -1.0 and models == 2:
        both = np.square(e[:, 1] - e[:, 0]).sum(-1).mean()
        assert float(found) == pytest.approx(both / 2, rel=1e-5)


def test_the_delta_loss_is_a_cross_term(variant):
    """With tied shared latents and equal biases, Delta is the error of the difference."""
    w = 1.5
    config, d, x = variant.problem(shared=5, loss="mse", cross=-w / (1 + w), aux=0.0)
    d = dataclasses.replace(d, b_dec=jnp.broadcast_to(d.b_dec[:1], d.b_dec.shape))
    found = variant.loss_of(config, d, x)[0].loss
    p, X = variant.float64(constrain(d, config)), np.asarray(x, np.float64)
    f = np.maximum(np.einsum("bmd,mdl->bl", X, p["W_enc"]) + p["b_enc"], 0)
    keys = f * np.linalg.norm(p["W_dec"], axis=-1).sum(axis=1)
    f = np.where(keys >= np.sort(keys.ravel())[-3 * len(X)], f, 0)
    error = X - np.einsum("bl,lmd->bmd", f, p["W_dec"]) - p["b_dec"]
    rows = p["W_dec"][5:, 1] - p["W_dec"][5:, 0]  # The delta set: all but the shared ones.
    delta = X[:, 1] - X[:, 0] - f[:, 5:] @ rows
    value = np.square(error).sum(axis=(1, 2)).mean() + w * np.square(delta).sum(axis=1).mean()
    variant.close(found, value / (2 * (1 + w)))


def test_blocks_for_other_models_are_refused():
    with pytest.raises(JaxdiffError, match="dedicated"):
        trained(dedicated=(1, 1, 1))
    with pytest.raises(JaxdiffError, match="cross"):
        config = DictionaryConfig(latents=8, k=2, cross=-0.5, loss="mse")
        fit(config, TrainConfig(steps=1, batch=4), [np.zeros((4, 1, 5), np.float32)], seed=0)
