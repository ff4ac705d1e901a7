"""Weighted sums of listed rows in a GPU's registers: a block adds up a piece of one group's rows.

Its 128 threads each hold one, two or four columns, so that a row is read in whole cache lines. All
groups' pieces of the same columns are next to each other in the order of blocks: while they are at
work, those columns of the source stay in the second-level cache.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

THREADS = 128
# The compiler finds out which thread holds which element.
PARAMS = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup)


def piece(width: int) -> int:
    """Returns how many columns of `width`, a multiple of 128, a block takes at a time."""
    return next(THREADS * each for each in (4, 2, 1) if width % (THREADS * each) == 0)


def filled(rows: jax.Array) -> jax.Array:
    """Returns rows with zeros up to a multiple of 128 columns, a copy where there are fewer."""
    return jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % THREADS)))


def add_up(source, indices, weights, start, stop, columns: Any) -> jax.Array:
    """Returns the sum over entries `start` to `stop` of some columns of the rows, in float32."""

    def entry(i, total):
        row = source[indices[i], columns].astype(jnp.float32)
        return total + weights[i] * row

    return lax.fori_loop(start, stop, entry, jnp.zeros((columns.size,), jnp.float32))
