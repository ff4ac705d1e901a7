import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.diffing import latent_scaling, scaling_statistic
from jaxdiff.stats import InMemory, blocks, encode, fold


def _scale(data, *, size=1500, resamples=50, seed=0, **more):
    dictionary = data.dictionary
    statistic = scaling_statistic(dictionary.W_dec, resamples=resamples, key=jax.random.key(seed))
    sums = fold(
        {"scaling": statistic},
        blocks(InMemory.of(data.batch), size),
        dictionary=dictionary,
        mean=np.zeros((2, 32), np.float32),
        scale=np.ones(2, np.float32),
    )["scaling"]
    return latent_scaling(statistic, sums, **more)


@pytest.fixture(scope="module")
def messy(planted):
    """Planted data with a dictionary that is wrong everywhere: no number is 0 or 1."""
    data = planted(rows=3000, p=0.3, noise=0.2)
    rng = np.random.default_rng(5)
    d = data.dictionary
    bend = lambda a, by: a + jnp.asarray(by * rng.normal(size=a.shape), jnp.float32)  # noqa: E731
    data.dictionary = dataclasses.replace(
        d, W_enc=bend(d.W_enc, 0.1), W_dec=bend(d.W_dec, 0.1), b_dec=bend(d.b_dec, 0.05)
    )
    return data


@pytest.fixture(scope="module")
def dense(messy):
    """Float64 f [R, L], W [L, M, D] and the two parts of x [R, M, D] on the host."""
    rows = jnp.arange(len(messy.batch.mask), dtype=jnp.int32)
    encoded = encode(
        messy.dictionary, messy.batch, rows, mean=jnp.zeros((2, 32)), scale=jnp.ones(2)
    )
    parts = (encoded.f, messy.dictionary.W_dec, encoded.x, encoded.reconstruction)
    return [np.asarray(part, np.float64) for part in parts]


def test_one_pass_equals_dense_least_squares_for_every_target(messy, dense):
    f, W, x, xhat = dense
    got = _scale(messy)
    for j in range(f.shape[1]):
        d = W[j, got.side[j]]
        regressor = (f[:, j, None] * d).reshape(-1, 1)
        for m in range(2):
            targets = {
                "beta_reconstruction": xhat[:, m],
                "beta_error": x[:, m] - xhat[:, m] + f[:, j, None] * W[j, m],
                "beta_activation": x[:, m],
            }
            for name, target in targets.items():
                expected = np.linalg.lstsq(regressor, target.reshape(-1), rcond=None)[0][0]
                actual = getattr(got, name)[j, m]
                # Relative to 1, the size of a beta: the other side's may be close to 0.
                np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test_identities_of_the_targets(messy, dense):
    f, W, x, xhat = dense
    got = _scale(messy)
    d = W[np.arange(len(W)), got.side]
    energy = (d**2).sum(1) * (f**2).sum(0)
    error = np.einsum("rl,rmd,ld->lm", f, x - xhat, d) / energy[:, None]
    own = np.einsum("lmd,ld->lm", W, d) / (d**2).sum(1)[:, None]
    np.testing.assert_allclose(got.beta_error, error + own, atol=1e-5)
    np.testing.assert_allclose(got.beta_reconstruction, got.beta_activation - error, atol=1e-5)
    rows, other = np.arange(len(W)), 1 - got.side
    np.testing.assert_allclose(
        got.nu_error[:, 0], got.beta_error[rows, other] / got.beta_error[rows, got.side]
    )
    np.testing.assert_allclose(
        got.put_back, own[rows, other] / got.beta_error[rows, got.side], atol=1e-5
    )


def test_intervals_are_those_of_a_bootstrap_over_sequences(messy, dense):
    f, W, x, xhat = dense
    got = _scale(messy, resamples=2000, confidence=0.9)
    sequence = messy.batch.sequences
    total = sequence.max() + 1
    rng = np.random.default_rng(1)
    draws = rng.multinomial(total, np.full(total, 1 / total), size=4000)
    for j in range(f.shape[1]):
        own, d = got.side[j], W[j, got.side[j]]
        per_row = lambda target: f[:, j] * (target @ d)  # noqa: B023, E731
        for name, targets in {
            "nu_reconstruction": xhat,
            "nu_error": x - xhat + f[:, j, None, None] * W[j],
        }.items():
            sums = [np.bincount(sequence, per_row(targets[:, m]), total) for m in (1 - own, own)]
            ratios = (draws @ sums[0]) / (draws @ sums[1])
            value, low, high = getattr(got, name)[j]
            width = np.subtract(*np.quantile(ratios, [0.95, 0.05]))
            assert low < value < high
            np.testing.assert_allclose(
                [low, high], np.quantile(ratios, [0.05, 0.95]), atol=0.1 * width
            )
            if name == "nu_reconstruction":
                kish = sums[1].sum() ** 2 / (sums[1] ** 2).sum()
                np.testing.assert_allclose(got.sequences[j], kish, rtol=0.15)


def test_block_size_does_not_change_a_resample_and_the_seed_does(messy):
    a, b = _scale(messy, size=1500), _scale(messy, size=700)
    np.testing.assert_allclose(a.nu_error, b.nu_error, atol=1e-5)
    other = _scale(messy, seed=1)
    np.testing.assert_allclose(a.nu_error[:, 0], other.nu_error[:, 0])
    assert (a.nu_error[:, 1] != other.nu_error[:, 1]).all()


def test_what_has_no_ratio_says_why(planted):
    data = planted(rows=900)
    d = data.dictionary
    # 0 never fires. 1 writes a direction that is nowhere: its own reconstruction has it, and
    # its error takes it away again.
    W_dec = d.W_dec.at[1].set(jnp.zeros(32).at[0].set(1e-3)[None])
    W_dec = W_dec.at[2].set(0)
    data.dictionary = dataclasses.replace(d, b_enc=d.b_enc.at[0].set(-1e3), W_dec=W_dec)
    got = _scale(data)
    assert got.reason[0] == "never fires" and got.reason[2] == "never fires"
    assert (got.reason[3:] == "").all()
    for name in ("nu_reconstruction", "nu_error"):
        assert np.isnan(getattr(got, name)[[0, 2]]).all()
        assert np.isfinite(getattr(got, name)[3:]).all()


def test_a_latent_that_its_own_side_does_not_contain_is_undefined(planted):
    data = planted(rows=900)
    d = data.dictionary
    # Latent 1 writes against latent 0, which fires more strongly at the same rows.
    W_enc = d.W_enc.at[:, :, 1].set(d.W_enc[:, :, 0])
    W_dec = d.W_dec.at[1].set(-0.5 * d.W_dec[0])
    data.dictionary = dataclasses.replace(d, W_enc=W_enc, W_dec=W_dec)
    got = _scale(data)
    assert got.beta_reconstruction[1, 1] < 0
    assert got.reason[1].startswith("its own side's reconstruction")
    assert np.isnan(got.nu_reconstruction[1]).all()
