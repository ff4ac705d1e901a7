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
from .rule import Table, adam

# A chip of two cores divides the first axis of the grid between them.
_CORES = 2
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
    *,
    step: Int32[Array, ""],
    rate: Float[Array, ""],
    scale: Float[Array, ""],
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[Table, ...]:
    """Updates the rows that have slots; see `jaxdiff.kernels.row_adam`.

    Offsets are held in scalar memory, 4 bytes a row of the table.
    """
    # 0 stands for a row that has no slot.
    since = jnp.where(offsets[1:] > offsets[:-1], step - last, 0)
    factors = jnp.stack([rate, scale]).astype(jnp.float32)
    return tuple(
        _update(
            table, lists.listed(source, indices, some), offsets, since, step, factors, interpret
        )
        for table, source, some in zip(tables, sources, weights, strict=True)
    )


def _update(table: Table, given: lists.Listed, offsets, since, step, factors, interpret) -> Table:
    rows, width = table.params.shape
    blocks = pl.cdiv(rows, _BLOCK)
    cores = min(_CORES, blocks)
    each = pl.cdiv(blocks, cores)
    since = jnp.pad(since, (0, blocks * _BLOCK - rows)).reshape(blocks, 1, _BLOCK)

    def block(core, i, *_):
        return (jnp.minimum(core * each + i, blocks - 1), 0)

    streamed = [a for a in table if a is not None]
    specs = [pl.BlockSpec((_BLOCK, a.shape[1]), block) for a in streamed]
    held = sum(4 * _BLOCK * max(a.shape[1], _LANES) * a.dtype.itemsize for a in streamed)
    limit = held + (_BLOCK + 4 * _TILE) * width * 4 + lists.scratch_bytes(given.source) + 2**22
    out = pl.pallas_call(
        functools.partial(_kernel, rows=rows, each=each, streamed=len(streamed)),
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in streamed],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(cores, each),
            in_specs=[
                *[pl.BlockSpec(memory_space=pl.ANY)] * 3,
                pl.BlockSpec((1, 1, _BLOCK), lambda *at: (*block(*at), 0)),
                *specs,
            ],
            out_specs=specs,
            scratch_shapes=[
                pltpu.VMEM((_BLOCK, width), jnp.float32),
                *lists.scratch(given.source),
            ],
        ),
        input_output_aliases={7 + i: i for i in range(len(streamed))},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=limit
        ),
        interpret=interpret,
        name="row_adam",
    )(offsets, jnp.stack([step]), factors, *given, since, *streamed)
    return Table(*out)


def _kernel(offsets, step, factors, *refs, rows, each, streamed):
    given, (since, *refs) = lists.Listed(*refs[:3]), refs[3:]
    old, new = Table(*refs[:streamed]), Table(*refs[streamed : 2 * streamed])
    gradient, *held = refs[2 * streamed :]
    held = lists.Scratch(*held)
    core, i = pl.program_id(0), pl.program_id(1)
    first = (core * each + i) * _BLOCK

    @pl.when(i == 0)
    def _():
        lists.begin(given, held, offsets[jnp.minimum(first, rows)])

    @pl.when(first < rows)
    def _():
        def row(r, _):
            def put(total):
                gradient[pl.ds(r, 1), :] = total

            lists.add_up(given, held, offsets[first + r], offsets[first + r + 1], put)
            return 0

        lax.fori_loop(0, jnp.minimum(rows - first, _BLOCK), row, 0)
        _step(old, new, gradient, since[0], step[0], factors)

    @pl.when(i == each - 1)
    def _():
        lists.end(given, held)


def _step(old: Table, new: Table, gradient, since, step, factors) -> None:
    """Applies Adam's rule to a block; gradients of rows without slots are left-overs."""
    steps = jnp.broadcast_to(since, (_LANES, _BLOCK)).T

    # What is computed of a whole block would not fit beside it.
    for at in range(0, _BLOCK, _TILE):
        rows = pl.ds(at, _TILE)
        column = steps[at : at + _TILE, :1]
        touched = column > 0
        params, moment = old.params[rows, :], old.moment[rows, :]
        moved, second = adam(
            params,
            moment,
            factors[1] * gradient[rows, :],
            since=jnp.maximum(column, 1),
            step=jnp.full((1, 1), step),
            rate=factors[0],
        )
        # Selects are of float32: a bfloat16 mask has another layout.
        moved = jnp.where(touched, moved, params.astype(jnp.float32))
        new.params[rows, :] = moved.astype(params.dtype)
        second = jnp.where(touched, second, moment.astype(jnp.float32))
        new.moment[rows, :] = second.astype(moment.dtype)
        if old.squares is not None and new.squares is not None:
            new.squares[rows, :] = _squares(moved, old.squares[rows, :], touched)


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
