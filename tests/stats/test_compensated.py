import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.stats import compensated


def _sum(xs):
    def body(total, x):
        return compensated.add(total, x), None

    return jax.jit(lambda xs: jax.lax.scan(body, compensated.zero(), xs)[0])(xs)


def test_a_long_sum_keeps_its_digits_where_float32_does_not():
    xs = np.random.default_rng(0).random(100_000).astype(np.float32) + 1e3
    exact = xs.astype(np.float64).sum()
    plain = float(jax.lax.scan(lambda s, x: (s + x, None), jnp.float32(0), jnp.asarray(xs))[0])
    assert abs(plain / exact - 1) > 1e-6
    np.testing.assert_allclose(compensated.value(_sum(jnp.asarray(xs))), exact, rtol=1e-8)


def test_merge_is_the_sum_of_both():
    xs = jnp.asarray(np.random.default_rng(1).normal(size=2000) * 1e4, jnp.float32)
    merged = compensated.merge(_sum(xs[:700]), _sum(xs[700:]))
    exact = np.asarray(xs, np.float64).sum()
    np.testing.assert_allclose(compensated.value(merged), exact, rtol=1e-8)
