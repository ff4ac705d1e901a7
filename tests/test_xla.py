"""Sums that XLA fuses on CPU are right where its default would make them wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import _xla


@pytest.mark.smoke
@pytest.mark.parametrize("shape", [(4, 4, 256, 256), (16, 4, 64, 128), (2, 4, 512, 768)])
def test_mapped_gradients_through_a_norm(shape):
    rng = np.random.default_rng(0)
    by, x = (rng.normal(size=s).astype(np.float32) for s in (shape, shape[1:]))

    def norm(x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)

    found = jax.jit(jax.vmap(lambda v: jax.vjp(norm, x)[1](v)[0]))(by)
    wide = x.astype(np.float64)
    scale = 1 / np.sqrt(np.mean(wide * wide, -1, keepdims=True) + 1e-5)
    expected = by * scale - wide * scale**3 * np.mean(by * wide, -1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        ("0.10.1", None, None),
        ("0.10.2", None, "--xla_cpu_experimental_ynn_fusion_type=-reduce"),
        ("0.11.0", "--a=1", "--a=1 --xla_cpu_experimental_ynn_fusion_type=-reduce"),
        ("0.11.1rc1", "--a=1", "--a=1"),
        ("0.10.2", *["--xla_cpu_experimental_ynn_fusion_type=dot"] * 2),
    ],
)
def test_only_what_needs_the_flag_gets_it(monkeypatch, version, before, after):
    monkeypatch.setattr(_xla.metadata, "version", lambda name: version)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if before is not None:
        monkeypatch.setenv("XLA_FLAGS", before)
    _xla.avoid_wrong_sums()
    assert _xla.os.environ.get("XLA_FLAGS") == after
