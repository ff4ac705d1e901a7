"""Lists of weighted rows with their sums in float64, and selection by a stable sort, in NumPy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest


class RowList(NamedTuple):
    """Operands of `weighted_gather`."""

    source: jax.Array
    indices: jax.Array
    weights: jax.Array
    offsets: jax.Array


def _draw(rows, width, groups, entries, dtype=jnp.float32, *, skewed=False) -> RowList:
    rng = np.random.default_rng(rows + width)
    odds = 1 / np.arange(1, groups + 1) ** (1.5 if skewed else 0.0)
    counts = rng.permutation(rng.multinomial(entries - entries // 10, odds / odds.sum()))
    counts[0] = 0
    return RowList(
        jnp.asarray(rng.normal(size=(rows, width)), dtype),
        jnp.asarray(rng.integers(0, rows, entries), jnp.int32),
        jnp.asarray(rng.normal(size=entries), jnp.float32),
        jnp.asarray(np.concatenate([[0], np.cumsum(counts)]), jnp.int32),
    )


@pytest.fixture
def draw():
    """Draws a list: a tenth of it is in no group, and some groups are empty, some long."""
    return _draw


def _sums(given: RowList) -> np.ndarray:
    source = np.asarray(given.source.astype(jnp.float32), np.float64)
    indices, weights, offsets = (np.asarray(a) for a in given[1:])
    return np.stack(
        [
            weights[a:b].astype(np.float64) @ source[indices[a:b]]
            for a, b in zip(offsets[:-1], offsets[1:], strict=True)
        ]
    )


@pytest.fixture
def float64_sums():
    """Returns the groups' weighted sums."""
    return _sums


def _brute_force(keys, n):
    flat = np.where(keys > 0, keys, 0).ravel()
    order = np.argsort(-flat, kind="stable")[:n]
    mask = np.zeros(flat.size, bool)
    mask[order] = flat[order] > 0
    return mask.reshape(keys.shape)


@pytest.fixture
def brute_force():
    """Marks the n largest positive keys, ties by flat index."""
    return _brute_force
