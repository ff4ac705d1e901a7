"""Sparse row gradients with the step of Adam fused in."""

from jaxtyping import Array, Float, Int32

from ..dispatch import Implementation, dispatch
from . import xla
from .rule import Schedule, Table, move, update_rows

__all__ = ["Schedule", "Table", "move", "row_adam", "row_squares", "update_rows"]


def row_adam(
    tables: tuple[Table, ...],
    last: Int32[Array, " L"],
    sources: tuple[Float[Array, "S _"], ...],
    indices: Int32[Array, " n"],
    weights: tuple[Float[Array, " n"], ...],
    offsets: Int32[Array, " _"],
    schedule: Schedule,
    pulls: tuple[Float[Array, "L _"] | None, ...] | None = None,
    *,
    implementation: Implementation | None = None,
) -> tuple[Table, ...]:
    """Moves the rows that have entries by Adam's rule with beta1 = 0, and leaves the others.

    The gradient of row l of a table is the sum of weights[i] * source[indices[i]] over
    offsets[l] <= i < offsets[l + 1]. It is never written down. Donate the tables: they are updated
    where they are.

    Args:
        tables: Parameters with their second moments, one or more of L rows each.
        last: Step that last touched each row, 0 for none [steps].
        sources: Rows that each table's gradient is made of.
        indices: Source row of each entry, in range also where no group holds the entry.
        weights: Weight of each entry, for each table.
        offsets: Where each row's entries start, and where the last one's end, [L + 1].
        schedule: How this step moves rows.
        pulls: For each table None, or factors of G equal parts of each row, [L, G], as many as
            `squares` has: the row's parts times them are added to its gradient. It is the gradient
            of a penalty of norms.
        implementation: `xla`, `pallas_tpu`, `pallas_gpu`, or None for the platform's.

    Returns:
        The tables after the step.

    Raises:
        ValueError: If there is no implementation of that name.
    """
    from . import gpu, tpu

    known = {"xla": xla.row_adam, "pallas_tpu": tpu.row_adam, "pallas_gpu": gpu.row_adam}
    pulls = (None,) * len(tables) if pulls is None else pulls
    operands = tables, last, sources, indices, weights, offsets, schedule, pulls
    return dispatch(known, implementation, *operands)


def row_squares(
    sources: tuple[Float[Array, "S _"], ...],
    indices: Int32[Array, " n"],
    weights: tuple[Float[Array, " n"], ...],
    offsets: Int32[Array, " _"],
    *,
    implementation: Implementation | None = None,
) -> Float[Array, ""]:
    """Returns the squared norm of the gradient of all rows of all tables, without holding it.

    Arguments are those of `row_adam`.
    """
    from . import squares_gpu, squares_tpu

    known = {
        "xla": xla.row_squares,
        "pallas_tpu": squares_tpu.row_squares,
        "pallas_gpu": squares_gpu.row_squares,
    }
    return dispatch(known, implementation, sources, indices, weights, offsets)
