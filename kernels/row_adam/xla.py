"""Definition of the row-sparse Adam step, and its path on CPUs."""

import jax.numpy as jnp
from jaxdiff.kernels.row_adam.rule import update_rows
from jaxdiff.kernels.segments import fold_segments, weighted_sum
from jaxtyping import Array, Float, Int32


def row_adam(
    params: Float[Array, "L D"],
    moment: Float[Array, "L D"],
    last: Int32[Array, " L"],
    source: Float[Array, "S D"],
    indices: Int32[Array, " n"],
    weights: Float[Array, " n"],
    offsets: Int32[Array, " _"],
    *,
    step: Int32[Array, ""],
    rate: Float[Array, ""],
    scale: Float[Array, ""],
) -> tuple[Float[Array, "L D"], Float[Array, "L D"]]:
    """Updates the rows that have slots; see `jaxdiff.kernels.row_adam`."""

    def sums(_, slots, valid):
        return weighted_sum(source, indices[slots], jnp.where(valid, weights[slots], 0.0))

    def take(state, groups, gradient):
        return update_rows(state, groups, gradient, last, step=step, rate=rate, scale=scale)

    return fold_segments(offsets, sums, take, (params, moment))
