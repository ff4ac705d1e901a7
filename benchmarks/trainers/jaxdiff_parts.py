"""The parts of the sparse step, one by one, on the state after its first step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxdiff.kernels.gathered_dots import gathered_dots
from jaxdiff.kernels.row_adam import row_adam, row_squares
from jaxdiff.kernels.select import select
from jaxdiff.kernels.weighted_gather import weighted_gather

from jaxdiff.training.listed import by_row, reconstruct, schedule_of, scores_of
from trainers.jaxdiff_step import Sparse
from trainers.problem import Problem


def parts(problem: Problem) -> dict[str, Callable[[], object]]:
    """Returns a call for each part; what is between them is in none.

    AuxK is not one of them: nothing is dead after a step.
    """
    side, shape = Sparse(problem), problem.shape
    side.first()
    state, config, train = side.state, side.config, side.train
    x, tables = side.batches[0].astype(jnp.float32), state.tables
    rows, size = x.reshape(shape.batch, -1), shape.k * shape.batch

    encode = jax.jit(lambda state, x: scores_of(state, x, config, train, (), True))
    chosen = jax.jit(lambda scores, near: select(scores, jnp.int32(size), size=size, near=near))
    order = jax.jit(by_row, static_argnums=2)
    decode, dots, norm = jax.jit(weighted_gather), jax.jit(gathered_dots), jax.jit(row_squares)
    error = jax.jit(lambda x, guess, bias: reconstruct(x, guess, bias, config))

    scores = encode(state, rows)
    selection = chosen(scores, state.near)
    found = selection.entries
    codes = order(found, selection.values, shape.batch)
    guess = decode(tables.W_dec.params, *codes)
    slope = error(x, guess, tables.b_dec.params)[2]
    pairs = tables.W_dec.params, found.groups, slope, found.indices, found.offsets[-1]
    slopes = dots(*pairs)
    sources = rows, jnp.ones((shape.batch, 1)), slope
    weights = slopes, slopes, selection.values
    listed = sources, found.indices, weights, found.offsets
    bias = jnp.sum(slope, axis=0)
    schedule = jax.jit(
        lambda state: schedule_of(state, norm(*listed), bias, scores.share, config, train)[1]
    )(state)
    move = jax.jit(row_adam, donate_argnums=0)
    moved = [jax.tree.map(jnp.copy, tables[:3])]

    def update():
        moved[0] = move(moved[0], state.last, *listed, schedule)
        return moved[0]

    calls = {
        "encoder's product": lambda: encode(state, rows),
        "selection": lambda: chosen(scores, state.near),
        "order by row": lambda: order(found, selection.values, shape.batch),
        "decoder": lambda: decode(tables.W_dec.params, *codes),
        "error": lambda: error(x, guess, tables.b_dec.params),
        "slopes of entries": lambda: dots(*pairs),
        "norm of the gradient": lambda: norm(*listed),
        "gradient and Adam": update,
    }
    for part in calls.values():
        jax.block_until_ready(part())
    return calls
