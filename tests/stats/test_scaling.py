import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.diffing import scaling_statistic
from jaxdiff.stats import Firing, scaling


def test_resample_weights_are_poisson_and_belong_to_the_sequence():
    key = jax.random.key(0)
    rng = np.random.default_rng(0)
    sequences = jnp.asarray(rng.integers(0, 400, 900), jnp.int32)
    draw = jax.jit(lambda s, key: scaling.resample_weights(s, 300, key=key))
    weights = np.asarray(draw(sequences, key))
    assert weights.shape == (300, 900)
    # One count for each sequence, whatever batch it is in.
    alone = np.asarray(draw(sequences[:5], key))
    np.testing.assert_array_equal(weights[:, :5], alone)
    first = {int(s): weights[:, i] for i, s in reversed(list(enumerate(np.asarray(sequences))))}
    for i, s in enumerate(np.asarray(sequences)):
        np.testing.assert_array_equal(weights[:, i], first[int(s)])
    draws = np.stack(list(first.values()))
    assert abs(draws.mean() - 1) < 0.02 and abs(draws.var() - 1) < 0.03
    np.testing.assert_allclose((draws == 0).mean(), np.exp(-1), atol=0.01)
    np.testing.assert_allclose((draws == 3).mean(), np.exp(-1) / 6, atol=0.005)
    # Resamples and sequences are independent of each other.
    correlation = np.corrcoef(draws[:200])
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.35
    other = np.asarray(draw(sequences, jax.random.key(1)))
    assert (other != weights).mean() > 0.5


def test_a_decoupled_latent_uses_its_own_sides_code_and_puts_back_the_others(decoupled):
    d, encoded = decoupled.dictionary, decoupled.encoded
    statistic = scaling_statistic(d.W_dec, resamples=2, key=jax.random.key(0))
    sums = statistic.finalize(jax.jit(lambda e: statistic.update(statistic.init(), e))(encoded))
    f, W = np.asarray(encoded.f, np.float64), np.asarray(d.W_dec, np.float64)
    error = np.asarray(encoded.x, np.float64) - np.asarray(encoded.reconstruction, np.float64)
    own = np.asarray(statistic.own)
    for j in range(f.shape[2]):
        mine = f[:, own[j], j]
        for m in range(2):
            target = error[:, m] + f[:, m, j, None] * W[j, m]
            expected = mine @ target @ W[j, own[j]]
            np.testing.assert_allclose(sums.error[m, j], expected, rtol=2e-5, atol=1e-4)
        np.testing.assert_allclose(sums.squares[j], mine @ mine, rtol=1e-5)
    statistic = Firing(f.shape[2])
    counts = statistic.finalize(statistic.update(statistic.init(), encoded)).counts
    np.testing.assert_array_equal(counts, (f > 0).any(axis=1).sum(axis=0))
