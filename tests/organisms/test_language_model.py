import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import models
from jaxdiff.models import ModelConfig
from jaxdiff.organisms.language_model import Phase, Planted, next_token_loss, plant, train
from jaxdiff.types import TokenBatch

SPEC = ModelConfig(vocab_size=11, d_model=16, n_layers=2, n_heads=2, d_mlp=32)
SITE = "blocks.0.resid_post"


def _batch(seed: int) -> TokenBatch:
    """Makes rows that count up from a random start; label 1 on even tokens, 2 on tokens over 7."""
    start = np.random.default_rng(seed).integers(0, 11, (4, 1))
    tokens = ((start + np.arange(12)) % 11).astype(np.int32)
    labels = np.where(tokens % 2 == 0, 1, np.where(tokens > 7, 2, 0)).astype(np.int32)
    zeros = np.zeros_like(tokens)
    sequences = zeros + np.arange(4, dtype=np.int32)[:, None]
    positions = zeros + np.arange(12, dtype=np.int32)[None]
    return TokenBatch(tokens, zeros, sequences, positions, labels)


@pytest.fixture(scope="module")
def lm():
    return models.init(SPEC, key=jax.random.key(0))


def _loss(lm, batch: TokenBatch) -> float:
    tokens, sequences = jnp.asarray(batch.tokens), jnp.asarray(batch.sequences)
    logits, _ = models.run(lm, tokens, sequences=sequences)
    return float(next_token_loss(logits, tokens, sequences))


def test_the_loss_is_the_mean_over_next_tokens_of_the_same_document():
    logits = np.random.default_rng(0).normal(size=(1, 5, 3)).astype(np.float32)
    tokens, sequences = np.array([[0, 1, 2, 1, 0]]), np.array([[0, 0, 7, 7, -1]])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = -(log_p[0, 0, 1] + log_p[0, 2, 1]) / 2
    found = next_token_loss(
        *(jnp.asarray(a) for a in (logits, tokens.astype(np.int32), sequences.astype(np.int32)))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_training_learns_and_leaves_its_input_alone(lm):
    before = jax.tree.map(np.asarray, lm.params)
    batches = [_batch(i) for i in range(60)]
    trained = train(lm, batches, Phase(steps=60, lr=1e-2, warmup=5), title="test")
    assert _loss(trained, _batch(99)) < 0.3 < _loss(lm, _batch(99))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, lm.params))


def test_the_distance_is_zero_where_strengths_are_as_wanted():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(2, 3, 4)).astype(np.float32)
    labels = np.array([[0, 5, 6], [5, 5, 0]], np.int32)
    concepts = Planted(
        labels=jnp.array([5, 6]),
        directions=jnp.eye(4)[:2],
        absent=jnp.array([0.5, 0.0]),
        spread=jnp.array([2.0, 1.0]),
        gains=jnp.array([3.0, 1.0]),
        strengths=jnp.array([0.0, 10.0]),
    )
    x = base.copy()
    x[..., 0] = 0.5 + 3 * (base[..., 0] - 0.5)
    x[..., 1] += 10 * (labels == 6)
    given = [jnp.asarray(a) for a in (x, base, labels)]
    np.testing.assert_allclose(concepts.distance(*given), 0, atol=1e-9)
    given[0] = given[0].at[0, 0, 0].add(4.0)
    np.testing.assert_allclose(concepts.distance(*given)[0, 0], (4 / 2) ** 2, rtol=1e-5)


def test_planting_changes_the_strengths_by_what_was_asked(lm):
    batches = [_batch(i) for i in range(80)]
    concepts = plant(
        lm, batches[:4], SITE, gains={1: 2.0}, new=[2], strength=0.5, key=jax.random.key(1)
    )
    np.testing.assert_allclose(jnp.linalg.norm(concepts.directions, axis=1), 1, rtol=1e-5)
    phase = Phase(steps=80, lr=1e-2, warmup=5)
    changed = train(lm, batches, phase, title="test", base=lm, planted=concepts, site=SITE)

    def distance(model) -> float:
        batch = _batch(99)
        tokens, sequences = jnp.asarray(batch.tokens), jnp.asarray(batch.sequences)
        both = [models.run(m, tokens, (SITE,), sequences=sequences)[1][SITE] for m in (model, lm)]
        return float(concepts.distance(*both, jnp.asarray(batch.labels)).mean())

    assert distance(changed) < 0.1 * distance(lm)


def test_a_phase_is_a_setting_and_not_a_state():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Phase(steps=1, lr=0.1).lr = 0.2  # type: ignore[misc]
