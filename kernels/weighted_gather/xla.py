"""Definition of the weighted row gather, and its path on CPUs."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from ..segments import fold_segments, lay_out, weighted_sum


def weighted_gather(
    source: Float[Array, "S D"],
    indices: Int32[Array, " n"],
    weights: Float[Array, " n"],
    offsets: Int32[Array, " _"],
) -> Float[Array, "G D"]:
    """Returns, for each group, the sum of its slots' weights times source rows, in float32."""
    layout = lay_out(offsets, indices.size)
    rows, placed = layout.place(indices), layout.place(weights)

    def sums(cut):
        return weighted_sum(source, cut(rows), cut(placed))

    def put(out, groups, rows):
        return out.at[groups].set(rows, mode="drop", unique_indices=True)

    out = jnp.zeros((offsets.size - 1, source.shape[1]), jnp.float32)
    return fold_segments(layout, sums, put, out)
