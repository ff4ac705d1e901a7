"""The count of keys that reach pivots as a Mosaic TPU kernel: one pass over HBM for all pivots."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from ..counting_tpu import clear_when, count_into, counters, patterns

# A chip of two cores divides the first axis of the grid between them.
_CORES = 2
_ROWS, _LANES = 256, 1024


def reaching(
    keys: Float[Array, "R L"],
    pivots: Int32[Array, " P"],
    *,
    interpret: bool | pltpu.InterpretParams = False,
) -> Int32[Array, " P"]:
    """Returns how many keys reach each pivot; see `jaxdiff.kernels.reaching`."""
    blocks = pl.cdiv(keys.shape[0], _ROWS)
    each = pl.cdiv(blocks, _CORES)
    shape = counters(pivots.size, _LANES)
    counts = pl.pallas_call(
        functools.partial(_kernel, shape=keys.shape, each=each),
        out_shape=jax.ShapeDtypeStruct((_CORES, *shape.shape[1:]), shape.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(_CORES, each, pl.cdiv(keys.shape[1], _LANES)),
            in_specs=[
                pl.BlockSpec(
                    (_ROWS, _LANES),
                    lambda core, i, j, _: (jnp.minimum(core * each + i, blocks - 1), j),
                )
            ],
            out_specs=pl.BlockSpec(shape.shape, lambda core, i, j, _: (core, 0, 0, 0)),
            scratch_shapes=[pltpu.VMEM((_ROWS, _LANES), jnp.int32)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=2 * shape.size * 4 + 2**23,
        ),
        interpret=interpret,
        name="reaching",
    )(pivots, keys)
    return jnp.sum(counts, axis=(0, 2, 3), dtype=jnp.int32)


def _kernel(pivots, keys, counts, bits, *, shape, each):
    core, i, j = (pl.program_id(axis) for axis in range(3))
    rows, lanes = shape[0] - (core * each + i) * _ROWS, shape[1] - j * _LANES
    clear_when((i == 0) & (j == 0), counts)
    bits[...] = patterns(keys[...].astype(jnp.float32), rows, lanes)
    count_into(counts, bits, pivots)
