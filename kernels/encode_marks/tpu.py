"""The marks of the highest keys as a Mosaic TPU kernel: tiles of keys do not leave VMEM."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, DTypeLike, Float, Int32, UInt32

from ..bitmap import WORD
from ..product import product

# Rows of a tile of bfloat16; of float32, whose product takes six passes, half of them are enough.
_ROWS, _LANES = 2048, 1024
_SUBLANES = 8
# Rows of a tile that are turned into keys and packed at a time: eight words fill a register.
_SLAB = _SUBLANES * WORD
# Inner sizes of a tile, the first that divides; others are filled up to a multiple of the last.
_DEPTHS = (768, 512, 384, 256, 128)


def encode_marks(
    x: Float[Array, "B K"],
    W: Float[Array, "L K"],
    b: Float[Array, " L"],
    norms: Float[Array, " L"],
    pivot: Float[Array, ""],
    slack: tuple[Float[Array, " B"], Float[Array, " L"]],
    *,
    dtype: DTypeLike,
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[UInt32[Array, "W L"], Int32[Array, ""]]:
    """Returns marks and their count; see `jaxdiff.kernels.encode_marks`.

    The weights are read once for every tile of rows and rounded on the way, the rows once for every
    1024 latents.
    """
    (rows, inner), latents = x.shape, W.shape[0]
    height = _height(rows, _ROWS * 2 // jnp.dtype(dtype).itemsize)
    # Rows are few: their copy is small, and is read more often than it is made. Rows that fill up
    # have keys of NaN, and latents that fill up have norms of 0: neither reaches anything.
    x = jnp.pad(x, ((0, 0), (0, -inner % _DEPTHS[-1]))).astype(dtype)
    x = jnp.pad(x, ((0, -rows % height), (0, 0)), constant_values=jnp.nan)
    b, norms, loose = (jnp.pad(a, (0, -latents % _LANES))[None, :] for a in (b, norms, slack[1]))
    by_row = jnp.pad(slack[0], (0, -rows % height))[:, None]
    depth = next(d for d in _DEPTHS if x.shape[1] % d == 0)
    grid = b.size // _LANES, x.shape[0] // height, x.shape[1] // depth
    tiles = 2 * depth * (height * x.dtype.itemsize + _LANES * W.dtype.itemsize)
    words, counts = pl.pallas_call(
        functools.partial(_kernel, inner=inner),
        out_shape=(
            jax.ShapeDtypeStruct((pl.cdiv(rows, WORD), latents), jnp.int32),
            jax.ShapeDtypeStruct((grid[0], _SUBLANES, _LANES), jnp.int32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[
                pl.BlockSpec((height, depth), lambda j, i, k, _: (i, k)),
                pl.BlockSpec((_LANES, depth), lambda j, i, k, _: (j, k)),
                *[pl.BlockSpec((1, _LANES), lambda j, i, k, _: (0, j))] * 3,
                pl.BlockSpec((height, 1), lambda j, i, k, _: (i, 0)),
            ],
            out_specs=(
                pl.BlockSpec((height // WORD, _LANES), lambda j, i, k, _: (i, j)),
                pl.BlockSpec((1, _SUBLANES, _LANES), lambda j, i, k, _: (j, 0, 0)),
            ),
            scratch_shapes=[pltpu.VMEM((height, _LANES), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=tiles + 4 * height * _LANES * 4 + 2 * height * 128 * 4 + 2**23,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * rows * latents * inner,
            bytes_accessed=grid[0] * x.nbytes + grid[1] * W.nbytes + rows * latents // 8,
            transcendentals=0,
        ),
        interpret=interpret,
        name="encode_marks",
    )(jnp.stack([pivot]), x, W, b, norms, loose, by_row)
    return lax.bitcast_convert_type(words, jnp.uint32), jnp.sum(counts, dtype=jnp.int32)


def _height(rows: int, most: int) -> int:
    """Returns how many rows a tile has: few tiles, equal, of whole words or slabs."""
    each = pl.cdiv(rows, pl.cdiv(rows, most))
    return pl.cdiv(each, _SLAB) * _SLAB if rows > _SLAB else pl.cdiv(rows, WORD) * WORD


def _kernel(pivot, x, W, b, norms, loose, by_row, words, counts, total, *, inner):
    i, k = pl.program_id(1), pl.program_id(2)
    depth = x.shape[1]

    @pl.when((i == 0) & (k == 0))
    def _():
        counts[...] = jnp.zeros_like(counts)

    @pl.when(k == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    weights = W[...]
    # What lies beyond its end may be anything.
    if inner % depth:
        column = k * depth + lax.broadcasted_iota(jnp.int32, weights.shape, 1)
        weights = jnp.where(column < inner, weights, 0.0)
    total[...] += product(x[...], weights.astype(x.dtype))

    @pl.when(k == pl.num_programs(2) - 1)
    def _():
        (height, lanes), slab = total.shape, min(total.shape[0], _SLAB)
        bit = jnp.left_shift(1, lax.broadcasted_iota(jnp.int32, (slab, lanes), 0) % WORD)
        for at in range(0, height, slab):
            part = pl.ds(at, slab)
            keys = (total[part, :] + b[...]) * norms[...]
            slack = by_row[part, :] * loose[...]
            marks = jnp.where(keys + slack >= pivot[0], bit, 0).reshape(-1, WORD, lanes)
            words[pl.ds(at // WORD, slab // WORD), :] = jnp.sum(marks, axis=1)
            reached = (keys - slack >= pivot[0]).astype(jnp.int32).reshape(-1, _SUBLANES, lanes)
            counts[0] += jnp.sum(reached, axis=0)
