"""Definition of the row-sparse Adam step, and its path on CPUs."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from ..segments import TILE, fold_segments, lay_out, weighted_sum
from .rule import Schedule, Table, update_rows


def row_adam(
    tables: tuple[Table, ...],
    last: Int32[Array, " L"],
    sources: tuple[Float[Array, "S _"], ...],
    indices: Int32[Array, " n"],
    weights: tuple[Float[Array, " n"], ...],
    offsets: Int32[Array, " _"],
    schedule: Schedule,
    pulls: tuple[Float[Array, "L G"] | None, ...],
) -> tuple[Table, ...]:
    """Updates the rows that have slots; see `jaxdiff.kernels.row_adam`."""

    def take(tables, rows, gradients):
        return tuple(
            update_rows(table, rows, gradient, last, schedule, pull)
            for table, gradient, pull in zip(tables, gradients, pulls, strict=True)
        )

    layout = lay_out(offsets, indices.size)
    return fold_segments(layout, _sums(layout, sources, indices, weights), take, tables)


def row_squares(
    sources: tuple[Float[Array, "S _"], ...],
    indices: Int32[Array, " n"],
    weights: tuple[Float[Array, " n"], ...],
    offsets: Int32[Array, " _"],
) -> Float[Array, ""]:
    """Returns the squared norm of the gradient of all rows of all tables, without holding it."""

    def add(totals, _, gradients):
        # Element by element: a sum of all in one would be taken one number at a time.
        pairs = zip(totals, gradients, strict=True)
        return tuple(total.at[: len(g)].add(jnp.square(g)) for total, g in pairs)

    layout = lay_out(offsets, indices.size)
    zeros = tuple(jnp.zeros((TILE, source.shape[1])) for source in sources)
    totals = fold_segments(layout, _sums(layout, sources, indices, weights), add, zeros)
    return sum((jnp.sum(total) for total in totals), jnp.zeros(()))


def _sums(layout, sources, indices, weights):
    rows, weights = layout.place(indices), [layout.place(some) for some in weights]

    def sums(cut):
        return tuple(
            weighted_sum(source, cut(rows), cut(some))
            for source, some in zip(sources, weights, strict=True)
        )

    return sums
