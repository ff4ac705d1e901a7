"""The fused encoder as a Mosaic TPU kernel: keys are counted while their tile is in VMEM."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from ..counting_tpu import clear_when, count_into, counters, patterns

_ROWS, _LANES = 1024, 1024
# Rows of a tile that are turned into keys and counted at a time.
_SLAB = 256
# Inner sizes of a tile, the first that divides; others are filled up to a multiple of the last.
_DEPTHS = (768, 512, 384, 256, 128)


def encode_keys(
    x: Float[Array, "B K"],
    W: Float[Array, "K L"],
    b: Float[Array, " L"],
    norms: Float[Array, " L"],
    pivots: Int32[Array, " P"],
    *,
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[Float[Array, "B L"], Int32[Array, " P"]]:
    """Returns ranking keys and their counts; see `jaxdiff.kernels.encode_keys`.

    The weights are read once for every 1024 rows, the rows once for every 1024 latents.
    """
    filled = -x.shape[1] % _DEPTHS[-1]
    x, W = jnp.pad(x, ((0, 0), (0, filled))), jnp.pad(W, ((0, filled), (0, 0)))
    (rows, inner), latents = x.shape, W.shape[1]
    depth = next(d for d in _DEPTHS if inner % d == 0)
    height = min(_ROWS, _round_up(rows, _SLAB if rows > _SLAB else 16))
    grid = (pl.cdiv(rows, height), pl.cdiv(latents, _LANES), inner // depth)
    shape = counters(pivots.size, _LANES)
    tiles = 2 * depth * (height * x.dtype.itemsize + _LANES * W.dtype.itemsize)
    limit = tiles + 5 * height * _LANES * 4 + 2 * shape.size * 4 + 2**23
    keys, counts = pl.pallas_call(
        functools.partial(_kernel, shape=(rows, latents)),
        out_shape=(
            jax.ShapeDtypeStruct((rows, latents), jnp.float32),
            jax.ShapeDtypeStruct((grid[0], *shape.shape[1:]), shape.dtype),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[
                pl.BlockSpec((height, depth), lambda i, j, k, _: (i, k)),
                pl.BlockSpec((depth, _LANES), lambda i, j, k, _: (k, j)),
                pl.BlockSpec((1, _LANES), lambda i, j, k, _: (0, j)),
                pl.BlockSpec((1, _LANES), lambda i, j, k, _: (0, j)),
            ],
            out_specs=(
                pl.BlockSpec((height, _LANES), lambda i, j, k, _: (i, j)),
                pl.BlockSpec(shape.shape, lambda i, j, k, _: (i, 0, 0, 0)),
            ),
            scratch_shapes=[
                pltpu.VMEM((height, _LANES), jnp.float32),
                pltpu.VMEM((min(height, _SLAB), _LANES), jnp.int32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=limit
        ),
        interpret=interpret,
        name="encode_keys",
    )(pivots, x, W, b[None, :], norms[None, :])
    return keys, jnp.sum(counts, axis=(0, 2, 3), dtype=jnp.int32)


def _kernel(pivots, x, W, b, norms, keys, counts, total, bits, *, shape):
    i, j, k = (pl.program_id(axis) for axis in range(3))
    clear_when((j == 0) & (k == 0), counts)

    @pl.when(k == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    total[...] += jnp.dot(
        x[...], W[...], precision=_precision(x), preferred_element_type=jnp.float32
    )

    @pl.when(k == pl.num_programs(2) - 1)
    def _():
        (height, lanes), slab = total.shape, bits.shape[0]
        for at in range(0, height, slab):
            part = pl.ds(at, slab)
            made = jnp.maximum(total[part, :] + b[...], 0.0) * norms[...]
            keys[part, :] = made
            valid = shape[0] - i * height - at, shape[1] - j * lanes
            bits[...] = patterns(made, *valid)
            count_into(counts, bits, pivots)


def _round_up(size: int, multiple: int) -> int:
    return size + -size % multiple


def _precision(x) -> str | None:
    # Float32 factors are meant: the default would round them to bfloat16.
    return "highest" if x.dtype == jnp.float32 else None
