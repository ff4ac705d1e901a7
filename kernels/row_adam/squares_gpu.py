"""The squared norm of all rows' gradients as a Mosaic GPU kernel: clipping needs it beforehand."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from .. import listed_rows_gpu as lists


def row_squares(
    sources: tuple[Float[Array, "S _"], ...],
    indices: Int32[Array, " n"],
    weights: tuple[Float[Array, " n"], ...],
    offsets: Int32[Array, " _"],
    *,
    interpret: Any = None,
) -> Float[Array, ""]:
    """Returns what `jaxdiff.kernels.row_adam.row_squares` says.

    Sources whose width is no multiple of 128 are copied to ones that are.
    """
    squares = [
        _squares(lists.filled(source), indices, some.astype(jnp.float32), offsets, interpret)
        for source, some in zip(sources, weights, strict=True)
    ]
    return sum(squares, jnp.float32(0))


def _squares(source, indices, weights, offsets, interpret) -> Float[Array, ""]:
    rows, piece = offsets.size - 1, lists.piece(source.shape[1])
    pieces = source.shape[1] // piece

    def kernel(source, indices, weights, offsets, out):
        at, row = lax.axis_index("piece"), lax.axis_index("row")
        bounds = offsets[row], offsets[row + 1]
        gradient = lists.add_up(source, indices, weights, *bounds, pl.ds(at * piece, piece))
        out[at, row] = jnp.sum(jnp.square(gradient))

    squares = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((pieces, rows), jnp.float32),
        grid=(pieces, rows),
        grid_names=("piece", "row"),
        compiler_params=lists.PARAMS,
        interpret=interpret,
        kernel_name="row_squares",
    )(source, indices, weights, offsets)
    return jnp.sum(squares)
