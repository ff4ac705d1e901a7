import jax.numpy as jnp
import numpy as np

from jaxdiff.training.median import geometric_median


def test_against_a_brute_force_minimum():
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2, 3)) + np.array([5.0, -3.0])[:, None]
    x[:5] += 100  # Outliers, which the mean would follow.
    found = np.asarray(geometric_median(jnp.asarray(x, jnp.float32), tolerance=0.0))
    for m in range(2):
        best = minimize(lambda p, m=m: np.linalg.norm(x[:, m] - p, axis=1).sum(), x[5:, m].mean(0))
        np.testing.assert_allclose(found[m], best.x, atol=1e-3)


def test_is_finite_when_it_lies_on_a_row():
    x = jnp.ones((8, 1, 3)).at[0].set(2.0)
    np.testing.assert_allclose(geometric_median(x), [[1, 1, 1]], atol=1e-4)
