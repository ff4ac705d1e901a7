"""The count of keys that reach pivots as a Mosaic GPU kernel: one pass over memory for all pivots.

Each thread counts in registers, a few counters a pivot, and the counters are added up afterwards:
integers, so that their order does not matter.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from ..bisect import pattern
from ..listed_rows_gpu import PARAMS, THREADS

# Several blocks on each of the processors of any GPU there is.
_BLOCKS = 1024
# Counters of a thread, and pivots of a pass. The kernel is written out for each pivot.
_REGISTERS, _PIVOTS = 64, 16


def reaching(
    keys: Float[Array, "R L"], pivots: Int32[Array, " P"], *, interpret: Any = None
) -> Int32[Array, " P"]:
    """Returns how many keys reach each pivot; see `jaxdiff.kernels.reaching`."""
    piece = THREADS * _REGISTERS // _PIVOTS
    flat = keys.astype(jnp.float32).reshape(-1)
    flat = jnp.pad(flat, (0, -keys.size % piece))
    some = [pivots[at : at + _PIVOTS] for at in range(0, pivots.size, _PIVOTS)]
    counts = jnp.concatenate([_count(flat, levels, piece, interpret) for levels in some])
    # What was filled up has pattern 0.
    return counts - jnp.where(pivots <= 0, flat.size - keys.size, 0)


def _count(keys, pivots, piece: int, interpret) -> Int32[Array, " P"]:
    pieces = keys.size // piece
    blocks = min(_BLOCKS, pieces)

    def kernel(keys, pivots, counts):
        block = lax.axis_index("block")
        levels = [pivots[p] for p in range(pivots.shape[0])]

        def count(i, held):
            some = keys[pl.ds((block + i * blocks) * piece, piece)]
            bits = pattern(some)
            return tuple(
                total + jnp.where(bits >= level, 1, 0)
                for total, level in zip(held, levels, strict=True)
            )

        zeros = tuple(jnp.zeros((piece,), jnp.int32) for _ in levels)
        turns = lax.div(pieces - block + blocks - 1, blocks)
        for p, total in enumerate(lax.fori_loop(0, turns, count, zeros)):
            counts[block, p] = total

    counts = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((blocks, pivots.size, piece), jnp.int32),
        grid=(blocks,),
        grid_names=("block",),
        compiler_params=PARAMS,
        interpret=interpret,
        kernel_name="reaching",
    )(keys, pivots)
    return jnp.sum(counts, axis=(0, 2), dtype=jnp.int32)
