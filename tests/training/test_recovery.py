"""Training on activations with known features: 20 shared, 4 weak in base, 4 only in each model."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries import decoder_norms
from jaxdiff.training import train

WIDTH, RATE = 32, 0.06
GAIN = np.ones((32, 2), np.float32)
GAIN[20:24, 0], GAIN[24:28, 0], GAIN[28:, 1] = 0.5, 0, 0


@pytest.fixture(scope="module")
def world(memory):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(32, WIDTH)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def draw(rows):
        codes = (rng.random((rows, 32)) < RATE) * rng.uniform(0.5, 1.5, (rows, 32))
        return np.einsum("rf,fm,fd->rmd", codes.astype(np.float32), GAIN, directions)

    return directions, memory.MemorySource(draw(16384)), memory.MemorySource(draw(2048))


def relative_norm(d):
    norms = np.asarray(decoder_norms(d))
    return 0.5 * (1 + (norms[:, 1] - norms[:, 0]) / norms.max(axis=1))


def matches(d, directions):
    """Returns, for each feature, the latent nearest to it and their cosine."""
    W = np.asarray(d.W_dec)
    side = W[np.arange(len(W)), np.asarray(decoder_norms(d)).argmax(axis=1)]
    cosine = side / np.linalg.norm(side, axis=1, keepdims=True) @ directions.T
    return cosine.argmax(axis=0), cosine.max(axis=0)


def test_batch_topk_recovers_every_exclusive_feature(world, tmp_path):
    directions, source, validation = world
    config = DictionaryConfig(latents=64, k=1.92, dead_after=20_000, decoder_norm=0.3)
    settings = TrainConfig(steps=1500, batch=256, lr=3e-3, warmup=50, decay_from=0.5, log_every=500)
    result = train(config, settings, source, validation.in_order, folder=tmp_path, seed=0)
    assert result.evaluation.fve_all > 0.97
    assert result.evaluation.l0 == pytest.approx(1.92, abs=2e-3)
    latent, cosine = matches(result.dictionary, directions)
    found = relative_norm(result.dictionary)[latent]
    assert (cosine > 0.9).sum() >= 31 and (cosine[24:] > 0.9).all()
    assert (found[24:28] > 0.9).all() and (found[28:] < 0.1).all()
    np.testing.assert_allclose(np.median(found[:20]), 0.5, atol=0.05)
    np.testing.assert_allclose(np.median(found[20:24]), 0.75, atol=0.05)
    # No latent that fires claims to be exclusive for a feature that both models have.
    alive = np.isin(np.arange(64), latent)
    assert ((relative_norm(result.dictionary)[alive] > 0.9).sum()) == 4


def test_match_l0_brings_l1_to_the_same_l0(world, tmp_path):
    _, source, validation = world
    config = DictionaryConfig(latents=64, k=1.92, activation="relu", match_l0=True, l1=0.01)
    settings = TrainConfig(steps=1500, batch=256, lr=2e-3, warmup=50, log_every=100)
    result = train(config, settings, source, validation.in_order, folder=tmp_path, seed=0)
    assert result.evaluation.l0 == pytest.approx(1.92, rel=0.1)
    weights = [line["l1"] for line in result.history]
    assert weights[-1] == weights[-2] and weights[0] < 0.1 < weights[-1] == result.l1_weight
    assert result.evaluation.fve_all > 0.7
    assert jnp.isfinite(result.dictionary.W_dec).all()
