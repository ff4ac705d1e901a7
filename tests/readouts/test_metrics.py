import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from jaxdiff import readouts

LOGITS = np.random.default_rng(0).normal(0, 3, (3, 11)).astype(np.float32)
OTHER = np.random.default_rng(1).normal(0, 3, (3, 11)).astype(np.float32)
WIDE = LOGITS.astype(np.float64)
ROWS = np.arange(3)
RIGHT, WRONG = np.array([0, 5, 10]), np.array([3, 3, 2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (readouts.Logit(4), lambda x: x[:, 4]),
        (readouts.Logit(RIGHT), lambda x: x[ROWS, RIGHT]),
        (readouts.LogitDifference(RIGHT, 3), lambda x: x[ROWS, RIGHT] - x[:, 3]),
        (
            readouts.LogitDifference(np.stack([RIGHT, WRONG], 1), np.array([[1, 7, 9]])),
            lambda x: (x[ROWS, RIGHT] + x[ROWS, WRONG]) / 2 - x[:, [1, 7, 9]].mean(1),
        ),
        (readouts.LogProb(WRONG), lambda x: log_softmax(x, 1)[ROWS, WRONG]),
        (readouts.LogProb(np.array([[2, 6]])), lambda x: log_softmax(x, 1)[:, [2, 6]].mean(1)),
        (readouts.Probability(WRONG), lambda x: softmax(x, 1)[ROWS, WRONG]),
        (
            readouts.KL(OTHER),
            lambda x: rel_entr(softmax(OTHER.astype(np.float64), 1), softmax(x, 1)).sum(1),
        ),
        (
            readouts.KL(OTHER[0]),
            lambda x: rel_entr(softmax(OTHER[:1].astype(np.float64), 1), softmax(x, 1)).sum(1),
        ),
        (readouts.Entropy(), lambda x: -(softmax(x, 1) * log_softmax(x, 1)).sum(1)),
    ],
)
def test_each_is_its_equation_in_float64(metric, expected, dtype):
    given = jnp.asarray(LOGITS, dtype)
    found = jax.jit(lambda metric, logits: metric(logits))(metric, given)
    assert found.shape == (3,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected(np.asarray(given, np.float64)), rtol=1e-5, atol=1e-6)


def test_other_tokens_are_traced_once():
    traces = []

    @jax.jit
    def value(metric):
        traces.append(None)
        return metric(jnp.asarray(LOGITS))

    for token in (1, 2, 3):
        value(readouts.LogitDifference(token, 0))
    assert len(traces) == 1


def test_the_gradient_of_log_prob_is_one_hot_minus_softmax():
    grad = jax.grad(lambda x: jnp.sum(readouts.LogProb(RIGHT)(x)))(jnp.asarray(LOGITS))
    np.testing.assert_allclose(grad, np.eye(11)[RIGHT] - softmax(WIDE, 1), atol=1e-6)


def test_probabilities_of_zero_are_no_nan():
    """Where the reference says never, whatever is said adds nothing, and its gradient is finite."""
    reference = np.where(np.arange(11) < 4, LOGITS, -np.inf).astype(np.float32)
    value, grad = jax.value_and_grad(lambda x: jnp.sum(readouts.KL(reference)(x)))(
        jnp.asarray(OTHER)
    )
    p = softmax(reference.astype(np.float64), 1)
    np.testing.assert_allclose(value, rel_entr(p, softmax(OTHER, 1)).sum(), rtol=1e-5)
    np.testing.assert_allclose(grad, softmax(OTHER, 1) - p, atol=1e-5)
    same = readouts.KL(LOGITS)(jnp.asarray(LOGITS))
    np.testing.assert_allclose(same, 0, atol=1e-6)
    entropy = readouts.Entropy()(jnp.asarray(reference))
    np.testing.assert_allclose(entropy, -(p[:, :4] * np.log(p[:, :4])).sum(1), rtol=1e-5)


def test_a_token_that_does_not_exist_shows():
    found = readouts.LogProb(np.array([1, 11, 2]))(jnp.asarray(LOGITS))
    assert np.isnan(found).tolist() == [False, True, False]


def test_nan_is_never_hidden():
    logits = jnp.asarray(LOGITS).at[1, 4].set(jnp.nan)
    for metric in (readouts.Entropy(), readouts.KL(OTHER), readouts.LogProb(0)):
        assert np.isnan(metric(logits)).tolist() == [False, True, False]
    assert np.isnan(readouts.KL(logits)(jnp.asarray(OTHER))).tolist() == [False, True, False]
