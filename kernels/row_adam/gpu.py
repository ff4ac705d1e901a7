"""The row-sparse Adam step as a Mosaic GPU kernel: gradients of rows are never written down.

A block updates one row where it is, piece by piece; rows that nothing selected are not read.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from .. import listed_rows_gpu as lists
from . import xla
from .rule import Schedule, Table, adam


def row_adam(
    tables: tuple[Table, ...],
    last: Int32[Array, " L"],
    sources: tuple[Float[Array, "S _"], ...],
    indices: Int32[Array, " n"],
    weights: tuple[Float[Array, " n"], ...],
    offsets: Int32[Array, " _"],
    schedule: Schedule,
    pulls: tuple[Float[Array, "L _"] | None, ...],
    *,
    interpret: Any = None,
) -> tuple[Table, ...]:
    """Updates the rows that have slots; see `jaxdiff.kernels.row_adam`.

    Tables of fewer than 128 columns, such as biases, are filled up for as long as the kernel runs;
    wider ones of which a part of a row is no multiple of 128 are left to XLA.
    """
    moved = []
    for table, source, some, pull in zip(tables, sources, weights, pulls, strict=True):
        width, parts = source.shape[1], 1 if table.squares is None else table.squares.shape[1]
        if width % (parts * lists.THREADS) and (parts > 1 or width > lists.THREADS):
            listed = (source,), indices, (some,), offsets
            moved += xla.row_adam((table,), last, *listed, schedule, (pull,))
            continue
        listed = lists.filled(source), indices, some.astype(jnp.float32), offsets
        params, moment = lists.filled(table.params), lists.filled(table.moment)
        table = table._replace(params=params, moment=moment)
        new = _update(table, last, listed, schedule, pull, interpret=interpret)
        params, moment = new.params[:, :width], new.moment[:, :width]
        moved.append(new._replace(params=params, moment=moment))
    return tuple(moved)


# References to a memory exist in a compiled function alone.
@functools.partial(jax.jit, static_argnames="interpret")
def _update(table: Table, last, listed, schedule: Schedule, pull, *, interpret) -> Table:
    rows, width = table.params.shape
    parts = 1 if table.squares is None else table.squares.shape[1]
    piece = lists.piece(width // parts)
    pieces = width // parts // piece
    refs = jax.tree.map(functools.partial(jax.new_ref, memory_space=plgpu.GMEM), table)
    since, numbers = schedule.step - last, jnp.stack([schedule.step, schedule.first])
    factors = jnp.stack([schedule.rate, schedule.scale])

    pulls = () if pull is None else (pull,)

    def kernel(source, indices, weights, offsets, since, numbers, factors, *refs):
        own, table = refs[: len(pulls)], Table(*refs[len(pulls) :])
        row = lax.axis_index("row")
        start, stop = offsets[row], offsets[row + 1]

        def move(at, square):
            columns = pl.ds(at * piece, piece)
            total = lists.add_up(source, indices, weights, start, stop, columns)
            params = table.params[row, columns]
            if own:
                total += own[0][row, lax.div(at, pieces)] * params
            params, moment = adam(
                params,
                table.moment[row, columns],
                factors[1] * total,
                since=since[row],
                step=numbers[0],
                rate=factors[0],
                row=numbers[1] + row,
                column=at * piece,
                sqrt=_sqrt,
            )
            table.params[row, columns] = params.astype(table.params.dtype)
            table.moment[row, columns] = moment.astype(table.moment.dtype)
            return square + jnp.square(params)

        def part(i, _):
            bounds = i * pieces, (i + 1) * pieces
            square = lax.fori_loop(*bounds, move, jnp.zeros((piece,), jnp.float32))
            if table.squares is not None:
                table.squares[row, i] = jnp.sum(square)
            return 0

        @pl.when(stop > start)
        def _():
            lax.fori_loop(0, parts, part, 0)

    run: Any = pl.kernel(
        kernel,
        out_type=(),
        mesh=plgpu.Mesh(grid=(rows,), grid_names=("row",), kernel_name="row_adam"),
        compiler_params=lists.PARAMS,
        interpret=interpret,
    )
    run(*listed, since, numbers, factors, *pulls, *(ref for ref in refs if ref is not None))
    return jax.tree.map(jax.freeze, refs)


def _sqrt(x):
    # Mosaic GPU has the reciprocal root alone.
    return x * lax.rsqrt(jnp.maximum(x, jnp.finfo(jnp.float32).tiny))
