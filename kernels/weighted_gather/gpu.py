"""The weighted row gather as a Mosaic GPU kernel."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from .. import listed_rows_gpu as lists


def weighted_gather(
    source: Float[Array, "S D"],
    indices: Int32[Array, " n"],
    weights: Float[Array, " n"],
    offsets: Int32[Array, " _"],
    *,
    interpret: Any = None,
) -> Float[Array, "G D"]:
    """Returns what `jaxdiff.kernels.weighted_gather` says; see `listed_rows_gpu`.

    A source whose width is no multiple of 128 is copied to one that is.
    """
    groups, width = offsets.size - 1, source.shape[1]
    source = lists.filled(source)
    piece = lists.piece(source.shape[1])

    def kernel(source, indices, weights, offsets, out):
        columns = pl.ds(lax.axis_index("piece") * piece, piece)
        group = lax.axis_index("group")
        bounds = offsets[group], offsets[group + 1]
        out[group, columns] = lists.add_up(source, indices, weights, *bounds, columns)

    out = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((groups, source.shape[1]), jnp.float32),
        grid=(source.shape[1] // piece, groups),
        grid_names=("piece", "group"),
        compiler_params=lists.PARAMS,
        interpret=interpret,
        kernel_name="weighted_gather",
    )(source, indices, weights.astype(jnp.float32), offsets)
    return out[:, :width]
