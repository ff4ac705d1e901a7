"""The weighted row gather as a Mosaic TPU kernel."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from .. import listed_rows_tpu as lists

# A chip of two cores divides the first axis of the grid between them.
_CORES = 2
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
    blocks = pl.cdiv(groups, _BLOCK)
    cores = min(_CORES, blocks)
    each = pl.cdiv(blocks, cores)
    block = pl.BlockSpec(
        (_BLOCK, width), lambda core, i, _: (jnp.minimum(core * each + i, blocks - 1), 0)
    )
    limit = 4 * _BLOCK * width * 4 + lists.scratch_bytes(given.source) + 2**22
    return pl.pallas_call(
        functools.partial(_kernel, groups=groups, each=each),
        out_shape=jax.ShapeDtypeStruct((groups, width), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(cores, each),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)] * 3,
            out_specs=block,
            scratch_shapes=lists.scratch(given.source),
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=limit
        ),
        interpret=interpret,
        name="weighted_gather",
    )(offsets, *given)


def _kernel(offsets, source, indices, weights, out, *held, groups, each):
    given, held = lists.Listed(source, indices, weights), lists.Scratch(*held)
    core, i = pl.program_id(0), pl.program_id(1)
    first = (core * each + i) * _BLOCK

    @pl.when(i == 0)
    def _():
        lists.begin(given, held, offsets[jnp.minimum(first, groups)])

    @pl.when(first < groups)
    def _():
        out[...] = jnp.zeros_like(out)

        def group(g, _):
            def put(row):
                out[pl.ds(g, 1), :] = row

            lists.add_up(given, held, offsets[first + g], offsets[first + g + 1], put)
            return 0

        lax.fori_loop(0, jnp.minimum(groups - first, _BLOCK), group, 0)

    @pl.when(i == each - 1)
    def _():
        lists.end(given, held)
