"""Definition of the row-sparse Adam step, and its path on CPUs."""

import jax.numpy as jnp
from jaxdiff.kernels.row_adam.rule import Table, update_rows
from jaxdiff.kernels.segments import fold_segments, weighted_sum
from jaxtyping import Array, Float, Int32


def row_adam(
    table: Table,
    last: Int32[Array, " L"],
    source: Float[Array, "S D"],
    indices: Int32[Array, " n"],
    weights: Float[Array, " n"],
    offsets: Int32[Array, " _"],
    *,
    step: Int32[Array, ""],
    rate: Float[Array, ""],
    scale: Float[Array, ""],
) -> Table:
    """Updates the rows that have slots; see `jaxdiff.kernels.row_adam`."""

    def sums(_, slots, valid):
        return weighted_sum(source, indices[slots], jnp.where(valid, weights[slots], 0.0))

    def take(table, rows, gradient):
        return update_rows(table, rows, gradient, last, step=step, rate=rate, scale=scale)

    return fold_segments(offsets, sums, take, table)
