"""How many keys of a tile in a TPU's VMEM reach each of several pivots."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from .bisect import pattern

_SUBLANES = 8


def counters(pivots: int, lanes: int) -> jax.ShapeDtypeStruct:
    """Returns the shape of the counts that `count_into` keeps: by pivot, sublane and lane."""
    return jax.ShapeDtypeStruct((1, pivots, _SUBLANES, lanes), jnp.int32)


def patterns(keys: jax.Array, rows, columns) -> jax.Array:
    """Returns bit patterns of a tile of keys; outside of its valid part the lowest integer."""
    bits = pattern(keys)
    inside = lax.broadcasted_iota(jnp.int32, keys.shape, 0) < rows
    inside &= lax.broadcasted_iota(jnp.int32, keys.shape, 1) < columns
    return jnp.where(inside, bits, jnp.iinfo(jnp.int32).min)


def count_into(counts, bits, pivots) -> None:
    """Adds a tile's counts; one pass over the tile in VMEM for each pivot, none over HBM.

    Args:
        counts: Ref of shape `counters`.
        bits: Ref of the tile's patterns, [multiple of 8, lanes].
        pivots: Ref in scalar memory.
    """
    rows, lanes = bits.shape

    def pivot(p, _):
        reached = (bits[...] >= pivots[p]).astype(jnp.int32)
        counts[0, p] += jnp.sum(reached.reshape(rows // _SUBLANES, _SUBLANES, lanes), axis=0)
        return 0

    lax.fori_loop(0, counts.shape[1], pivot, 0)


def clear_when(first, counts) -> None:
    """Sets counts to zero in the first step that adds to them."""

    @pl.when(first)
    def _():
        counts[...] = jnp.zeros_like(counts)
