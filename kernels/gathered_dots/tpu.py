"""Scalar products of listed pairs of rows as a Mosaic TPU kernel.

The list is cut into windows. While one window's products are taken, the rows of the next one are on
their way, each by a copy of its own; see `listed_rows_tpu` for the form of the sources.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, DTypeLike, Float, Int32

from .. import listed_rows_tpu as lists

_WINDOW, _SLAB = lists.WINDOW, 8


def gathered_dots(
    left: Float[Array, "R D"],
    rows: Int32[Array, " N"],
    right: Float[Array, "S D"],
    others: Int32[Array, " N"],
    count: Int32[Array, ""],
    *,
    dtype: DTypeLike,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, " N"]:
    """Returns what `jaxdiff.kernels.gathered_dots` says; windows beyond the count cost nothing."""
    size, width = rows.size, left.shape[1]
    sources = lists.packed(left), lists.packed(right)
    listed = [_windows(a) for a in (rows, others)]
    here = lists.blocks(listed[0].shape[0], 1)
    now = pl.BlockSpec((1, 1, _WINDOW), lambda *at: (*here.index(*at), 0), memory_space=pltpu.SMEM)
    after = pl.BlockSpec(
        (1, 1, _WINDOW),
        lambda core, i, _: (*here.index(core, i + 1), 0),
        memory_space=pltpu.SMEM,
    )
    held = [pltpu.VMEM((2, _WINDOW, a.shape[1]), a.dtype) for a in sources]
    fetched = size * sum(a.shape[1] * 4 for a in sources)
    dots = pl.pallas_call(
        functools.partial(_kernel, here=here, dtype=dtype),
        out_shape=jax.ShapeDtypeStruct(listed[0].shape, jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=here.grid,
            in_specs=[now, now, after, after, *[pl.BlockSpec(memory_space=pl.ANY)] * 2],
            out_specs=pl.BlockSpec((1, 1, _WINDOW), lambda *at: (*here.index(*at), 0)),
            scratch_shapes=[
                *held,
                pltpu.VMEM((_WINDOW, _WINDOW), jnp.float32),
                pltpu.SemaphoreType.DMA((2, 2)),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=sum(2 * _WINDOW * a.shape[1] * 4 for a in sources) + 2**22,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * size * width, bytes_accessed=fetched + 12 * size, transcendentals=0
        ),
        interpret=interpret,
        name="gathered_dots",
    )(count[None], *listed, *listed, *sources)
    return dots.reshape(-1)[:size]


def _windows(indices: Int32[Array, " N"]) -> Int32[Array, "w 1 n"]:
    return jnp.pad(indices, (0, -indices.size % _WINDOW)).reshape(-1, 1, _WINDOW)


class _Side(NamedTuple):
    """One side of the products: its source, two windows of its rows, and what tells of arrival."""

    source: Any
    rows: Any
    arrived: Any

    def start(self, indices, slot) -> None:
        def fetch(i, _):
            pltpu.make_async_copy(
                self.source.at[pl.ds(indices[0, 0, i], 1), :],
                self.rows.at[slot, pl.ds(i, 1), :],
                self.arrived.at[slot],
            ).start()
            return 0

        lax.fori_loop(0, _WINDOW, fetch, 0, unroll=8)

    def wait(self, slot) -> None:
        """Waits for all rows at once: a semaphore counts bytes."""
        rows = self.rows.at[slot]
        pltpu.make_async_copy(rows, rows, self.arrived.at[slot]).wait()


def _kernel(
    count, rows, others, next_rows, next_others, left, right, out, *held, here: lists.Blocks, dtype
):
    left_rows, right_rows, sums, arrived = held
    left = _Side(left, left_rows, arrived.at[0])
    right = _Side(right, right_rows, arrived.at[1])
    core, i = pl.program_id(0), pl.program_id(1)
    window, slot = core * here.grid[1] + i, lax.rem(i, 2)

    def listed(window):
        return (window < here.groups) & (window * _WINDOW < count[0])

    @pl.when((i == 0) & listed(window))
    def _():
        left.start(rows, slot)
        right.start(others, slot)

    @pl.when((i + 1 < here.grid[1]) & listed(window + 1))
    def _():
        left.start(next_rows, 1 - slot)
        right.start(next_others, 1 - slot)

    # Steps beyond the last window see its products again.
    @pl.when(window < here.groups)
    def _():
        out[...] = jnp.zeros_like(out)

    @pl.when(listed(window))
    def _():
        left.wait(slot)
        right.wait(slot)

        def slab(s, _):
            part = pl.ds(s * _SLAB, _SLAB)
            factors = (lists.unpacked(side.rows[slot, part, :]) for side in (left, right))
            one, other = (some.astype(dtype).astype(jnp.float32) for some in factors)
            total = jnp.sum(one * other, axis=1, keepdims=True)
            sums[part, :] = jnp.broadcast_to(total, (_SLAB, _WINDOW))
            return 0

        lax.fori_loop(0, _WINDOW // _SLAB, slab, 0)
        entry = window * _WINDOW + lax.broadcasted_iota(jnp.int32, (1, _WINDOW), 1)
        # A column becomes a row: one product to a lane.
        out[0] = jnp.where(entry < count[0], sums[...].T[:1, :], 0.0)
