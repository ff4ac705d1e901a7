"""The row-sparse Adam step as a Mosaic TPU kernel: gradients of rows are never written down.

Blocks of rows of parameters and moments stream through VMEM while `listed_rows_tpu` adds up their
gradients there; the results go where the operands were. Rows that nothing selected pass through
unchanged.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from .. import listed_rows_tpu as lists
from .rule import Schedule, Table, adam

_BLOCK = 32
_LANES = 128
# Rows that fill a register of bfloat16.
_TILE = 16


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
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[Table, ...]:
    """Updates the rows that have slots; see `jaxdiff.kernels.row_adam`.

    Offsets are held in scalar memory, 4 bytes a row of the table.
    """
    # 0 stands for a row that has no slot.
    since = jnp.where(offsets[1:] > offsets[:-1], schedule.step - last, 0)
    factors = jnp.stack([schedule.rate, schedule.scale]).astype(jnp.float32)
    return tuple(
        _update(
            table,
            lists.listed(source, indices, some),
            offsets,
            since,
            jnp.stack([schedule.step, schedule.first]),
            factors,
            pull,
            interpret,
        )
        for table, source, some, pull in zip(tables, sources, weights, pulls, strict=True)
    )


def _update(
    table: Table, given: lists.Listed, offsets, since, numbers, factors, pull, interpret
) -> Table:
    rows, width = table.params.shape
    pulls = [] if pull is None else [pull]
    here = lists.blocks(rows, _BLOCK)
    since = jnp.pad(since, (0, -rows % _BLOCK)).reshape(-1, 1, _BLOCK)
    streamed = [a for a in table if a is not None]
    specs = [pl.BlockSpec((_BLOCK, a.shape[1]), here.index) for a in streamed]
    held = sum(4 * _BLOCK * max(a.shape[1], _LANES) * a.dtype.itemsize for a in [*streamed, *pulls])
    limit = held + (_BLOCK + 4 * _TILE) * width * 4 + lists.scratch_bytes(given.source) + 2**22
    out = pl.pallas_call(
        functools.partial(_kernel, here=here, streamed=len(streamed), pulled=pull is not None),
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in streamed],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=here.grid,
            in_specs=[
                *[pl.BlockSpec(memory_space=pl.ANY)] * 3,
                pl.BlockSpec((1, 1, _BLOCK), lambda *at: (*here.index(*at), 0)),
                *[pl.BlockSpec((_BLOCK, a.shape[1]), here.index) for a in pulls],
                *specs,
            ],
            out_specs=specs,
            scratch_shapes=[
                pltpu.VMEM((_BLOCK, width), jnp.float32),
                *lists.scratch(given.source),
            ],
        ),
        input_output_aliases={7 + len(pulls) + i: i for i in range(len(streamed))},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=limit
        ),
        # All rows pass through, and the rule is applied to all.
        cost_estimate=lists.cost(
            given, streamed=2 * sum(a.nbytes for a in streamed), updated=rows * width
        ),
        interpret=interpret,
        name="row_adam",
    )(offsets, numbers, factors, *given, since, *pulls, *streamed)
    return Table(*out)


def _kernel(offsets, numbers, factors, *refs, here, streamed, pulled):
    given, (since, *refs) = lists.Listed(*refs[:3]), refs[3:]
    pull, *refs = refs if pulled else (None, *refs)
    old, new = Table(*refs[:streamed]), Table(*refs[streamed : 2 * streamed])
    gradient, *held = refs[2 * streamed :]

    # Inside of a branch there is no place in the grid.
    first = numbers[1] + here.first()

    def move():
        _step(old, new, gradient, since[0], numbers[0], first, factors, pull)

    lists.add_up_block(given, lists.Scratch(*held), offsets, gradient, here, after=move)


def _step(old: Table, new: Table, gradient, since, step, first, factors, pull) -> None:
    """Applies Adam's rule to a block whose first row is `first` of all devices' rows.

    Gradients of rows without slots are left-overs.
    """
    steps = jnp.broadcast_to(since, (_LANES, _BLOCK)).T

    # What is computed of a whole block would not fit beside it.
    for at in range(0, _BLOCK, _TILE):
        rows = pl.ds(at, _TILE)
        column = steps[at : at + _TILE, :1]
        touched = column > 0
        params, moment = old.params[rows, :], old.moment[rows, :]
        total = gradient[rows, :]
        if pull is not None:
            total += _own(params, pull[rows, :])
        moved, second = adam(
            params,
            moment,
            factors[1] * total,
            since=jnp.maximum(column, 1),
            step=jnp.full((1, 1), step),
            rate=factors[0],
            row=first + at + lax.broadcasted_iota(jnp.int32, (_TILE, 1), 0),
        )
        # Selects are of float32: a bfloat16 mask has another layout.
        moved = jnp.where(touched, moved, params.astype(jnp.float32))
        new.params[rows, :] = moved.astype(params.dtype)
        second = jnp.where(touched, second, moment.astype(jnp.float32))
        new.moment[rows, :] = second.astype(moment.dtype)
        if old.squares is not None and new.squares is not None:
            new.squares[rows, :] = _squares(moved, old.squares[rows, :], touched)


def _own(params, pull):
    """Returns rows of which each part is multiplied by a number of its own."""
    parts = pull.shape[1]
    each = params.shape[1] // parts
    pieces = [params[:, i * each : (i + 1) * each] * pull[:, i : i + 1] for i in range(parts)]
    return jnp.concatenate(pieces, axis=1)


def _squares(moved, squares, touched):
    """Returns the squared norms of the parts of moved rows; of other rows, the given ones."""
    parts = squares.shape[1]
    each = moved.shape[1] // parts
    lane = lax.broadcasted_iota(jnp.int32, squares.shape, 1)
    for part in range(parts):
        piece = jnp.square(moved[:, part * each : (part + 1) * each])
        total = jnp.sum(piece, axis=1, keepdims=True)
        squares = jnp.where(touched & (lane == part), total, squares)
    return squares
