"""Scalar products of listed pairs of rows as a Mosaic GPU kernel: a block of threads to a pair."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, DTypeLike, Float, Int32

from .. import listed_rows_gpu as lists


def gathered_dots(
    left: Float[Array, "R D"],
    rows: Int32[Array, " N"],
    right: Float[Array, "S D"],
    others: Int32[Array, " N"],
    count: Int32[Array, ""],
    *,
    dtype: DTypeLike,
    interpret: Any = None,
) -> Float[Array, " N"]:
    """Returns what `jaxdiff.kernels.gathered_dots` says.

    Blocks follow each other in the order of the list, so that a row which neighbours share is in
    the second-level cache. Sides whose width is no multiple of 128 are copied to one that is.
    """
    left, right = lists.filled(left), lists.filled(right)
    width = left.shape[1]
    piece = lists.piece(width)

    def kernel(left, rows, right, others, count, out):
        entry = lax.axis_index("entry")
        row, other = rows[entry], others[entry]

        def multiply(i, total):
            columns = pl.ds(i * piece, piece)
            factors = left[row, columns], right[other, columns]
            one, two = (some.astype(dtype).astype(jnp.float32) for some in factors)
            return total + one * two

        pieces = jnp.where(entry < count[0], width // piece, 0)
        zeros = jnp.zeros((piece,), jnp.float32)
        out[entry] = jnp.sum(lax.fori_loop(0, pieces, multiply, zeros))

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(rows.shape, jnp.float32),
        grid=(rows.size,),
        grid_names=("entry",),
        compiler_params=lists.PARAMS,
        interpret=interpret,
        kernel_name="gathered_dots",
    )(left, rows, right, others, count[None])
