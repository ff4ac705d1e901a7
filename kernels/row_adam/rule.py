"""Adam's rule for rows, with beta1 = 0 and a second moment that decays when it is needed.

With beta1 = 0 a row without a gradient does not move; only its second moment decays, by beta2 in
every step. Multiplying by beta2^(steps since) when the row is next touched is the same to rounding,
so rows that nothing selected are neither read nor written.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from .rounding import rounded

BETA2, EPSILON = 0.999, 1e-8
# Of the float32 that is multiplied with, so that powers of it come out as products do.
_LOG_BETA2 = float(np.log(np.float32(BETA2)))


def adam(
    value: Float[Array, "*s"],
    moment: Float[Array, "*s"],
    gradient: Float[Array, "*s"],
    *,
    since: Int32[Array, "*t"],
    step: Int32[Array, "*u"],
    rate: Float[Array, ""],
    row: Int32[Array, "*t"],
    column: Int32[Array, ""] | int = 0,
    sqrt: Callable[[Array], Array] = jnp.sqrt,
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """Returns values and second moments after a step, in float32.

    Where moments are bfloat16, they are rounded to that.

    Args:
        value: Parameters.
        moment: Second moments as of the last step that touched them.
        gradient: Gradient.
        since: Steps since then, this one included [steps]; of a shape that broadcasts.
        step: Number of this step, from 1 [steps].
        rate: Learning rate.
        row: Number of the row among those of all devices; of a shape that broadcasts.
        column: Column of the first value along the last axis.
        sqrt: The square root, where a compiler wants another one.
    """
    decay = jnp.exp(since.astype(jnp.float32) * _LOG_BETA2)
    second = moment.astype(jnp.float32) * decay + (1 - BETA2) * jnp.square(gradient)
    unbiased = second / (1 - jnp.exp(step.astype(jnp.float32) * _LOG_BETA2))
    moved = value - rate * gradient / (sqrt(unbiased) + EPSILON)
    if moment.dtype == jnp.bfloat16:
        second = rounded(second, step=step, row=row, column=column)
    return moved, second


class Table(NamedTuple):
    """Rows that Adam moves.

    Attributes:
        params: Parameters.
        moment: Second moments, as of the step that last touched a row.
        squares: Squared norm of each of G equal parts of a row, kept up to date where rows move;
            None where nobody asks for them.
    """

    params: Float[Array, "L D"]
    moment: Float[Array, "L D"]
    squares: Float[Array, "L G"] | None = None


class Schedule(NamedTuple):
    """How a step moves rows.

    Attributes:
        step: Number of the step, from 1 [steps].
        rate: Learning rate.
        scale: Factor of the gradient, below 1 where it is clipped.
        first: Number of rows on the devices before this one: a row's number among all of them
            decides how its moments are rounded.
    """

    step: Int32[Array, ""]
    rate: Float[Array, ""]
    scale: Float[Array, ""]
    first: Int32[Array, ""]


def move(
    rows: Table,
    gradient: Float[Array, "T D"],
    since: Int32[Array, " T"],
    schedule: Schedule,
    pull: Float[Array, "T G"] | None = None,
    places: Int32[Array, " T"] | None = None,
) -> Table:
    """Returns rows after a step.

    Args:
        rows: Rows, all of a table or some.
        gradient: Their gradient.
        since: Steps since each was last touched, this one included [steps].
        schedule: How this step moves them.
        pull: Where given, `pull[t, g]` times part g of the row itself is added to its gradient.
        places: Which rows of the table they are, where they are not all of it.
    """
    if pull is not None:
        own = rows.params.reshape(*pull.shape, -1) * pull[:, :, None]
        gradient = gradient + own.reshape(gradient.shape)
    if places is None:
        places = jnp.arange(since.size, dtype=jnp.int32)
    moved = adam(
        rows.params,
        rows.moment,
        schedule.scale * gradient,
        since=since[:, None],
        step=schedule.step,
        rate=schedule.rate,
        row=(schedule.first + places)[:, None],
    )
    new = Table(*moved)
    if rows.squares is not None:
        # Columns are cut, not reshaped, which on TPUs would copy a whole table.
        parts = jnp.split(jnp.square(new.params), rows.squares.shape[1], axis=1)
        new = new._replace(squares=jnp.stack([jnp.sum(part, axis=1) for part in parts], axis=1))
    return jax.tree.map(lambda a, b: b.astype(a.dtype), rows, new)


def update_rows(
    table: Table,
    rows: Int32[Array, " T"],
    gradient: Float[Array, "T D"],
    last: Int32[Array, " L"],
    schedule: Schedule,
    pull: Float[Array, "L G"] | None = None,
) -> Table:
    """Updates listed rows, all different; those out of range are left out.

    Args:
        table: Rows.
        rows: Which to update.
        gradient: Their gradient.
        last: Step that last touched each row, 0 for none [steps].
        schedule: How this step moves them.
        pull: As in `move`, of all rows.
    """
    some, since, pulls = jax.tree.map(
        lambda a: a.at[rows].get(mode="clip"), (table, schedule.step - last, pull)
    )

    def put(everything, some):
        return everything.at[rows].set(some, mode="drop", unique_indices=True)

    return jax.tree.map(put, table, move(some, gradient, since, schedule, pulls, rows))
