"""The weighted row gather as a Mosaic TPU kernel."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from .. import listed_rows_tpu as lists

_BLOCK = 64


def weighted_gather(
    source: Float[Array, "S D"],
    indices: Int32[Array, " n"],
    weights: Float[Array, " n"],
    offsets: Int32[Array, " _"],
    *,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "G D"]:
    """Returns what `jaxdiff.kernels.weighted_gather` says; see `listed_rows_tpu` for the fetch.

    Offsets are held in scalar memory, 4 bytes a group.
    """
    groups, width = offsets.size - 1, source.shape[1]
    given = lists.listed(source, indices, weights)
    here = lists.blocks(groups, _BLOCK)
    limit = 4 * _BLOCK * width * 4 + lists.scratch_bytes(given.source) + 2**22
    return pl.pallas_call(
        functools.partial(_kernel, here=here),
        out_shape=jax.ShapeDtypeStruct((groups, width), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=here.grid,
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)] * 3,
            out_specs=pl.BlockSpec((_BLOCK, width), here.index),
            scratch_shapes=lists.scratch(given.source),
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=limit
        ),
        cost_estimate=lists.cost(given, streamed=groups * (width + 1) * 4),
        interpret=interpret,
        name="weighted_gather",
    )(offsets, *given)


def _kernel(offsets, source, indices, weights, out, *held, here):
    given, held = lists.Listed(source, indices, weights), lists.Scratch(*held)

    def clear():
        out[...] = jnp.zeros_like(out)

    lists.add_up_block(given, held, offsets, out, here.first(), before=clear)
