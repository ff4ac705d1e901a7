"""The squared norm of all rows' gradients as a Mosaic TPU kernel: clipping needs it beforehand."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from .. import listed_rows_tpu as lists


def row_squares(
    sources: tuple[Float[Array, "S _"], ...],
    indices: Int32[Array, " n"],
    weights: tuple[Float[Array, " n"], ...],
    offsets: Int32[Array, " _"],
    *,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, ""]:
    """Returns what `jaxdiff.kernels.row_adam.row_squares` says."""
    squares = [
        _squares(lists.listed(source, indices, some), source.shape[1], offsets, interpret)
        for source, some in zip(sources, weights, strict=True)
    ]
    return sum(squares, jnp.float32(0))


def _squares(given: lists.Listed, width: int, offsets, interpret) -> Float[Array, ""]:
    squares = pl.pallas_call(
        functools.partial(_kernel, each=pl.cdiv(offsets.size - 1, lists.CORES)),
        out_shape=jax.ShapeDtypeStruct((lists.CORES, 1, width), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(lists.CORES,),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)] * 3,
            out_specs=pl.BlockSpec((1, 1, width), lambda core, _: (core, 0, 0)),
            scratch_shapes=lists.scratch(given.source),
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",),
            vmem_limit_bytes=lists.scratch_bytes(given.source) + 2**22,
        ),
        cost_estimate=lists.cost(given, streamed=offsets.nbytes),
        interpret=interpret,
        name="row_squares",
    )(offsets, *given)
    return jnp.sum(squares)


def _kernel(offsets, source, indices, weights, squares, *held, each):
    given, held = lists.Listed(source, indices, weights), lists.Scratch(*held)
    squares[...] = jnp.zeros_like(squares)
    rows = offsets.shape[0] - 1
    first = pl.program_id(0) * each
    lists.begin(given, held, offsets[jnp.minimum(first, rows)])

    def row(r, _):
        def put(gradient):
            squares[0] += jnp.square(gradient)

        lists.add_up(given, held, offsets[r], offsets[r + 1], put)
        return 0

    lax.fori_loop(first, jnp.minimum(first + each, rows), row, 0)
    lists.end(given, held)
