"""Tied encoders: one matrix, whose gradient is the sum of both uses; no memory for another."""

import jax
import numpy as np
import pytest

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.constraints import constrain
from jaxdiff.training import fit
from jaxdiff.training.state import init_state


def test_the_gradient_is_the_sum_of_both_uses(variant):
    config, d, x = variant.problem(tied=True, activation="relu")
    apart = config.model_copy(update={"tied": False})
    parts, gradient = variant.loss_of(config, d, x)
    plain, both = variant.loss_of(apart, constrain(d, config), x)
    variant.close(parts.loss, plain.loss)
    variant.close(gradient.W_dec, both.W_dec + np.transpose(both.W_enc, (2, 0, 1)))
    assert gradient.W_enc is None


@pytest.mark.parametrize("activation", ["batch_topk", "gated"])
def test_encoder_and_decoder_stay_tied(activation):
    config = DictionaryConfig(
        latents=12, k=3, tied=True, activation=activation, aux=0.0, same_init=False
    )
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(20, 32, 2, 5)).astype(np.float32)
    d, _ = fit(config, TrainConfig(steps=20, batch=32, lr=1e-2, warmup=0), batches, seed=0)
    encoder, decoder = np.transpose(d.W_enc, (2, 0, 1)), np.asarray(d.W_dec)
    if activation == "batch_topk":
        np.testing.assert_array_equal(encoder, decoder)
    else:  # A gate's magnitudes have a scale of their own, one for each latent.
        scale = encoder / decoder
        np.testing.assert_allclose(scale, np.broadcast_to(scale[:, :1, :1], scale.shape), rtol=1e-5)
        assert np.ptp(scale[:, 0, 0]) > 1e-3


def test_state_has_one_matrix(variant):
    config, _, x = variant.problem(tied=True)
    state = init_state(config, TrainConfig(batch=len(x)), x, key=jax.random.key(0))
    large = [a for a in jax.tree.leaves(state) if np.size(a) >= variant.latents * 10]
    assert len(large) == 3  # The matrix and its two moments.
