"""Definition of the row-sparse Adam step, and its path on CPUs."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from ..segments import fold_segments, weighted_sum
from .rule import Table, update_rows


def row_adam(
    tables: tuple[Table, ...],
    last: Int32[Array, " L"],
    sources: tuple[Float[Array, "S _"], ...],
    indices: Int32[Array, " n"],
    weights: tuple[Float[Array, " n"], ...],
    offsets: Int32[Array, " _"],
    *,
    step: Int32[Array, ""],
    rate: Float[Array, ""],
    scale: Float[Array, ""],
) -> tuple[Table, ...]:
    """Updates the rows that have slots; see `jaxdiff.kernels.row_adam`."""

    def take(tables, rows, gradients):
        return tuple(
            update_rows(table, rows, gradient, last, step=step, rate=rate, scale=scale)
            for table, gradient in zip(tables, gradients, strict=True)
        )

    return fold_segments(offsets, _sums(sources, indices, weights), take, tables)


def row_squares(
    sources: tuple[Float[Array, "S _"], ...],
    indices: Int32[Array, " n"],
    weights: tuple[Float[Array, " n"], ...],
    offsets: Int32[Array, " _"],
) -> Float[Array, ""]:
    """Returns the squared norm of the gradient of all rows of all tables, without holding it."""

    def add(total, _, gradients):
        return total + sum(jnp.sum(jnp.square(gradient)) for gradient in gradients)

    return fold_segments(offsets, _sums(sources, indices, weights), add, jnp.zeros(()))


def _sums(sources, indices, weights):
    def sums(_, slots, valid):
        rows = indices[slots]
        return tuple(
            weighted_sum(source, rows, jnp.where(valid, some[slots], 0.0))
            for source, some in zip(sources, weights, strict=True)
        )

    return sums
