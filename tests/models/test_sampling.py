"""The choice of tokens against brute force, and its frequencies against the softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models import generate
from jaxdiff.models._prompts import sampling_of
from jaxdiff.models._sampling import choose

ROWS = 4000


def _choose(spec, logits, temperature, top_k, top_p, seed=0):
    sampling = sampling_of(spec, temperature, top_k, top_p, jax.random.key(seed), ())
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (ROWS, len(logits)))
    return jax.jit(choose)(sampling, rows, jnp.zeros(ROWS, jnp.int32))


def _allowed(logits, temperature, top_k, top_p):
    """Probabilities in float64, one token after the other from the likeliest on."""
    weights = np.exp(np.asarray(logits, np.float64) / temperature)
    order = sorted(range(len(logits)), key=lambda i: -weights[i])[:top_k]
    total, kept = sum(weights[i] for i in order), []
    for i in order:
        kept.append(i)
        if top_p is not None and sum(weights[j] for j in kept) >= top_p * total:
            break
    p = np.zeros(len(logits))
    p[kept] = weights[kept]
    return p / p.sum()


@pytest.mark.parametrize("top_p", [None, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 4, 99])
def test_frequencies_are_those_of_the_truncated_softmax(llama, top_k, top_p):
    logits = np.random.default_rng(1).normal(0, 1.5, 9)
    p = _allowed(logits, 0.7, top_k, top_p)
    drawn, log_probs = _choose(llama.spec, logits, 0.7, top_k, top_p)
    counts = np.bincount(drawn, minlength=9)
    assert not counts[p == 0].any()
    # Five standard deviations of a binomial count.
    assert (np.abs(counts - ROWS * p) <= 5 * np.sqrt(ROWS * p * (1 - p)) + 1e-9).all()
    expected = logits - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(log_probs, expected[drawn], rtol=1e-5)


def test_temperature_0_takes_the_likeliest(llama):
    logits = np.random.default_rng(1).normal(0, 1.5, 9)
    for options in ((None, None), (3, 0.5)):
        drawn, _ = _choose(llama.spec, logits, 0.0, *options)
        assert (drawn == np.argmax(logits)).all()


def test_a_model_generates_its_own_distribution(llama):
    """The second token, given each first one."""
    prompts = np.full((6000, 1), 3, np.int32)
    texts = generate(llama, prompts, 2, temperature=1.3, key=jax.random.key(5), taps=("logits",))
    first, second = np.asarray(texts.generated).T
    logits = np.asarray(texts.taps["logits"], np.float64)
    for column, drawn in ((0, first), (1, second)):
        p = np.exp(logits[:, column] / 1.3)
        p /= p.sum(axis=1, keepdims=True)
        counts, variance = np.bincount(drawn, minlength=24), (p * (1 - p)).sum(0)
        assert (np.abs(counts - p.sum(0)) <= 5 * np.sqrt(variance) + 1e-9).all()
    assert len(set(first.tolist())) > 5


def test_a_key_decides_the_draws(llama):
    prompts = np.full((4, 3), 7, np.int32)

    def go(seed):
        return generate(llama, prompts, 8, temperature=1.0, key=jax.random.key(seed)).generated

    one, two, other = go(1), go(1), go(2)
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    # Equal prompts in other rows are other draws.
    assert len({tuple(row) for row in np.asarray(one).tolist()}) == 4
