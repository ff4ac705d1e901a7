"""The row-sparse Adam step as a Mosaic TPU kernel: gradients of rows are never written down.

Blocks of rows of parameters and moments stream through VMEM while `listed_rows_tpu` adds up their
gradients there; the results go where the operands were. Blocks of which nothing was selected are
not read; in the others, rows that nothing selected pass through unchanged.
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

# Rows that fill a register of bfloat16.
BLOCK = 16
_LANES = 128


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

    Offsets and the order of blocks are held in scalar memory, 4 bytes a row of the table and a
    sixteenth of that.
    """
    # 0 stands for a row that has no slot.
    since = jnp.where(offsets[1:] > offsets[:-1], schedule.step - last, 0)
    factors = jnp.stack([schedule.rate, schedule.scale]).astype(jnp.float32)
    order, visited = _visits(offsets)
    numbers = jnp.stack([schedule.step, schedule.first, visited])
    return tuple(
        _update(
            table,
            lists.listed(source, indices, some),
            (offsets, order, numbers, factors),
            since,
            pull,
            interpret,
        )
        for table, source, some, pull in zip(tables, sources, weights, pulls, strict=True)
    )


def _visits(offsets) -> tuple[Array, Array]:
    """Returns the blocks that have entries, then the others, and how many blocks are visited.

    Each core visits one at least, and no block is visited by both.
    """
    starts = jnp.concatenate([offsets[:-1:BLOCK], offsets[-1:]])
    some = starts[1:] > starts[:-1]
    count, before = jnp.sum(some, dtype=jnp.int32), jnp.cumsum(some, dtype=jnp.int32)
    numbers = jnp.arange(some.size, dtype=jnp.int32)
    place = jnp.where(some, before - 1, count + numbers - before)
    order = jnp.zeros_like(numbers).at[place].set(numbers, unique_indices=True)
    return order, jnp.maximum(count, min(lists.CORES, some.size))


def _place(core, i, order, visited):
    """Returns which visit a step of the grid is, and the block that it sees."""
    cores = min(lists.CORES, order.shape[0])
    visit = core * pl.cdiv(visited, cores) + i
    return visit, order[jnp.minimum(visit, visited - 1)]


def _update(table: Table, given: lists.Listed, scalars, since, pull, interpret) -> Table:
    rows, width = table.params.shape
    pulls, (_, order, numbers, _) = [] if pull is None else [pull], scalars
    cores = min(lists.CORES, order.size)

    def block(core, i, _, order, numbers, *__):
        return _place(core, i, order, numbers[2])[1], 0

    since = jnp.pad(since, (0, -rows % BLOCK)).reshape(-1, 1, BLOCK)
    streamed = [a for a in table if a is not None]
    specs = [pl.BlockSpec((BLOCK, a.shape[1]), block) for a in streamed]
    held = sum(4 * BLOCK * max(a.shape[1], _LANES) * a.dtype.itemsize for a in [*streamed, *pulls])
    limit = held + 5 * BLOCK * width * 4 + lists.scratch_bytes(given.source) + 2**22
    out = pl.pallas_call(
        functools.partial(_kernel, streamed=len(streamed), pulled=pull is not None),
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in streamed],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(cores, pl.cdiv(numbers[2], cores)),
            in_specs=[
                *[pl.BlockSpec(memory_space=pl.ANY)] * 3,
                pl.BlockSpec((1, 1, BLOCK), lambda *at: (*block(*at), 0)),
                *[pl.BlockSpec((BLOCK, a.shape[1]), block) for a in pulls],
                *specs,
            ],
            out_specs=specs,
            scratch_shapes=[
                pltpu.VMEM((BLOCK, width), jnp.float32),
                *lists.scratch(given.source),
            ],
        ),
        input_output_aliases={8 + len(pulls) + i: i for i in range(len(streamed))},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=limit
        ),
        # At most: all rows pass through, and the rule is applied to all.
        cost_estimate=lists.cost(
            given, streamed=2 * sum(a.nbytes for a in streamed), updated=rows * width
        ),
        interpret=interpret,
        name="row_adam",
    )(*scalars, *given, since, *pulls, *streamed)
    return Table(*out)


def _kernel(offsets, order, numbers, factors, *refs, streamed, pulled):
    given, (since, *refs) = lists.Listed(*refs[:3]), refs[3:]
    pull, *refs = refs if pulled else (None, *refs)
    old, new = Table(*refs[:streamed]), Table(*refs[streamed : 2 * streamed])
    gradient, *held = refs[2 * streamed :]

    visit, block = _place(pl.program_id(0), pl.program_id(1), order, numbers[2])
    place = numbers[1] + block * BLOCK

    def move():
        _step(old, new, gradient, since[0], numbers[0], place, factors, pull)

    first = jnp.where(visit < numbers[2], block * BLOCK, offsets.shape[0])
    lists.add_up_block(given, lists.Scratch(*held), offsets, gradient, first, after=move)


def _step(old: Table, new: Table, gradient, since, step, first, factors, pull) -> None:
    """Applies Adam's rule to a block whose first row is `first` of all devices' rows.

    Gradients of rows without slots are left-overs.
    """
    column = jnp.broadcast_to(since, (_LANES, BLOCK)).T[:, :1]
    touched = column > 0
    params, moment = old.params[...], old.moment[...]
    total = gradient[...]
    if pull is not None:
        total += _own(params, pull[...])
    moved, second = adam(
        params,
        moment,
        factors[1] * total,
        since=jnp.maximum(column, 1),
        step=jnp.full((1, 1), step),
        rate=factors[0],
        row=first + lax.broadcasted_iota(jnp.int32, (BLOCK, 1), 0),
    )
    # Selects are of float32: a bfloat16 mask has another layout.
    moved = jnp.where(touched, moved, params.astype(jnp.float32))
    new.params[...] = moved.astype(params.dtype)
    second = jnp.where(touched, second, moment.astype(jnp.float32))
    new.moment[...] = second.astype(moment.dtype)
    if old.squares is not None and new.squares is not None:
        new.squares[...] = _squares(moved, old.squares[...], touched)


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
