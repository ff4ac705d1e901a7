import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.stats import Encoded, Strongest


def _encoded(v, sequences, start=0):
    rows = len(v)
    blank = jnp.zeros((rows, 2, 1))
    return Encoded(
        x=blank,
        reconstruction=blank,
        f=jnp.asarray(v),
        v=jnp.asarray(v),
        mask=jnp.ones(rows, bool),
        roles=jnp.zeros(rows, jnp.int32),
        sequences=jnp.asarray(sequences),
        rows=start + jnp.arange(rows, dtype=jnp.int32),
    )


def _brute(v, sequences, keep):
    """Best row of each sequence, then the best of those; the earlier row wins a tie."""
    values, rows = np.zeros((v.shape[1], keep)), np.full((v.shape[1], keep), -1)
    for latent in range(v.shape[1]):
        best = {}
        for row, (value, sequence) in enumerate(zip(v[:, latent], sequences, strict=True)):
            if value > 0 and value > best.get(sequence, (0, 0))[0]:
                best[sequence] = (value, row)
        ranked = sorted(best.values(), key=lambda item: (-item[0], item[1]))[:keep]
        for place, (value, row) in enumerate(ranked):
            values[latent, place], rows[latent, place] = value, row
    return values, rows


@pytest.mark.parametrize("levels", [3, 1000])
def test_equals_brute_force_over_batches_even_with_ties(levels):
    rng = np.random.default_rng(0)
    v = (rng.integers(0, levels, (300, 9)) / levels * (rng.random((300, 9)) < 0.3)).astype(
        np.float32
    )
    v[:, 4] = 0
    sequences = np.repeat(np.arange(6), 50).astype(np.int32)
    statistic = Strongest(9, 4)
    update = jax.jit(lambda state, batch: statistic.update(state, batch))
    state = statistic.init()
    for start in range(0, 300, 20):  # every document is in several batches
        part = slice(start, start + 20)
        state = update(state, _encoded(v[part], sequences[part], start))
    got = statistic.finalize(state)
    values, rows = _brute(v, sequences, 4)
    np.testing.assert_allclose(got.values, values)
    np.testing.assert_array_equal(got.rows, rows)


def test_keeping_nothing_is_allowed():
    statistic = Strongest(2, 0)
    state = statistic.update(
        statistic.init(), _encoded(np.ones((3, 2), np.float32), np.zeros(3, int))
    )
    assert statistic.finalize(state).rows.shape == (2, 0)
