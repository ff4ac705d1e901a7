import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.stats import Variance


def test_fve_is_one_minus_unexplained_variance(case):
    keep = case.batch.mask
    x = np.asarray(case.encoded.x, np.float64)[keep]
    error = np.square(x - np.asarray(case.encoded.reconstruction, np.float64)[keep]).sum((0, 2))
    variance = np.square(x - x.mean(0)).sum((0, 2))
    statistic = Variance(2, x.shape[2])
    got = statistic.finalize(jax.jit(lambda e: statistic.update(statistic.init(), e))(case.encoded))
    np.testing.assert_allclose(got.models, 1 - error / variance, rtol=1e-5)
    np.testing.assert_allclose(got.all, 1 - error.sum() / variance.sum(), rtol=1e-5)


def test_constant_activations_have_no_fve(case):
    flat = dataclasses.replace(case.encoded, x=jnp.zeros_like(case.encoded.x))
    statistic = Variance(2, flat.x.shape[2])
    got = statistic.finalize(jax.jit(lambda e: statistic.update(statistic.init(), e))(flat))
    assert np.isnan(got.models).all() and np.isnan(got.all)
