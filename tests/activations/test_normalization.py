import json

import jax.numpy as jnp
import numpy as np

from jaxdiff.activations import Moments, Normalization


def _groups(x, mask, cuts):
    parts = [Moments.of(a, m) for a, m in zip(np.split(x, cuts), np.split(mask, cuts), strict=True)]
    return (
        np.array([float(p.count) for p in parts]),
        np.stack([p.mean for p in parts]),
        np.stack([p.m2 for p in parts]),
    )


def test_one_pass_equals_two_pass_float64_even_far_from_zero():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(301, 2, 5)) * [[0.5], [3.0]] + 1e4).astype(np.float32)
    mask = rng.random(301) < 0.7
    seen = Moments.zeros((2, 5))
    for cuts in ([0, 3], [100, 101, 250]):
        seen = seen.merge(*_groups(x, mask, cuts))
    wide = x[mask].astype(np.float64)
    mean = wide.mean(axis=0)
    variance = ((wide - mean) ** 2).sum(axis=2).mean(axis=0) / 5
    assert seen.count == 2 * mask.sum()
    np.testing.assert_allclose(seen.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(seen.normalization().scale, 1 / np.sqrt(variance), rtol=1e-6)


def test_normalised_rows_have_zero_mean_and_unit_mean_square_and_come_back():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 2, 4)) * [[7.0], [0.1]] + 3).astype(np.float32)
    n = Moments.of(x, np.ones(500, bool)).normalization()
    y = n.apply(x)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose((y**2).mean(axis=(0, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(n.invert(y), x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(n.apply(jnp.asarray(x))), y, rtol=1e-6)


def test_bfloat16_rows_are_normalised_in_float32():
    x = jnp.full((3, 1, 2), 1.0, jnp.bfloat16)
    out = Normalization(np.full((1, 2), 1e-3, np.float32), np.ones(1, np.float32)).apply(x)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(out), 0.999, rtol=1e-6)


def test_a_model_without_variance_keeps_its_scale():
    m = Moments.of(np.ones((5, 1, 3), np.float32), np.ones(5, bool))
    assert m.normalization().scale == 1
    assert Moments.zeros((1, 3)).normalization().scale == 1


def test_moments_survive_json_to_the_last_bit():
    m = Moments.of(np.random.default_rng(0).normal(size=(9, 2, 3)), np.ones(9, bool))
    again = Moments.from_json(json.loads(json.dumps(m.to_json())))
    assert again.count == m.count
    assert (again.mean == m.mean).all() and (again.m2 == m.m2).all()
