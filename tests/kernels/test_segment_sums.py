"""Sums over segments against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxdiff.kernels.segment_sums import segment_sums


@pytest.mark.parametrize("size", [1, 128, 1000])
def test_sums(size):
    rng = np.random.default_rng(size)
    values = rng.random((2, size)) * 10.0 ** rng.integers(-3, 4, size)
    offsets = np.sort(np.append(rng.integers(0, size + 1, 40), [0, size - size // 10]))
    expected = np.array(
        [[row[a:b].sum() for a, b in zip(offsets, offsets[1:], strict=False)] for row in values]
    )
    found = segment_sums(jnp.asarray(values, jnp.float32), jnp.asarray(offsets, jnp.int32))
    near = 1e-6 * values.max() * 128
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=near)


def test_short_segments_after_long_ones_keep_their_digits():
    """Within a block, over two, and over many blocks."""
    long, lengths = 6 * 128**2, (3, 200, 1000)
    values = np.concatenate([np.full(long, 1e3), np.full(sum(lengths), 1e-2)])
    offsets = np.concatenate([[0], long + np.cumsum([0, *lengths])])
    found = segment_sums(jnp.asarray(values, jnp.float32)[None], jnp.asarray(offsets, jnp.int32))
    np.testing.assert_allclose(found[0, 1:], 1e-2 * np.array(lengths), rtol=1e-5)
