"""Scalar products of listed pairs of rows as a Mosaic TPU kernel.

The list is cut into windows. While one window's products are taken, the rows of the next one are on
their way, each by a copy of its own; see `listed_rows_tpu` for the form of the sources. A row of
the left side that neighbours share, as where the list is sorted by it, is fetched once for a run of
them.
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

_WINDOW, _SLAB, _LANES = lists.WINDOW, 8, 128


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
    """Returns what `jaxdiff.kernels.gathered_dots` says; windows beyond the count cost nothing.

    Sides whose width is no multiple of 128 are copied to one that is.
    """
    size, fill = rows.size, -left.shape[1] % _LANES
    sources = [lists.packed(jnp.pad(side, ((0, 0), (0, fill)))) for side in (left, right)]
    listed = [_windows(a) for a in (rows, others)]
    here = lists.blocks(listed[0].shape[0], 1)
    window = pl.BlockSpec(
        (1, 1, _WINDOW), lambda *at: (*here.index(*at), 0), memory_space=pltpu.SMEM
    )
    following = pl.BlockSpec(
        (1, 1, _WINDOW),
        lambda core, i, _: (*here.index(core, i + 1), 0),
        memory_space=pltpu.SMEM,
    )
    dots = pl.pallas_call(
        functools.partial(_kernel, here=here, dtype=dtype),
        out_shape=jax.ShapeDtypeStruct(listed[0].shape, jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=here.grid,
            in_specs=[
                *[window, window, following, following],
                *[pl.BlockSpec(memory_space=pl.ANY)] * 2,
            ],
            out_specs=pl.BlockSpec((1, 1, _WINDOW), lambda *at: (*here.index(*at), 0)),
            scratch_shapes=[
                *[pltpu.VMEM((2, _WINDOW, a.shape[1]), a.dtype) for a in sources],
                pltpu.SMEM((2, _WINDOW + 1), jnp.int32),
                pltpu.SMEM((2,), jnp.int32),
                pltpu.VMEM((_WINDOW, _LANES), jnp.float32),
                pltpu.SemaphoreType.DMA((2, 2)),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=sum(2 * _WINDOW * a.shape[1] * 4 for a in sources) + 2**22,
        ),
        cost_estimate=_cost(sources, size, here.groups),
        interpret=interpret,
        name="gathered_dots",
    )(count[None], *listed, *listed, *sources)
    return dots.reshape(-1)[:size]


def _windows(indices: Int32[Array, " N"]) -> Int32[Array, "w 1 n"]:
    return jnp.pad(indices, (0, -indices.size % _WINDOW)).reshape(-1, 1, _WINDOW)


def _cost(sources, size: int, windows: int) -> pl.CostEstimate:
    """Returns the cost for a list that is sorted by the left side."""
    left, right = sources
    runs = min(size, left.shape[0] + windows)
    fetched = runs * left.shape[1] * 4 + size * right.shape[1] * 4
    return pl.CostEstimate(
        flops=2 * size * lists.columns(left),
        bytes_accessed=fetched + 12 * size,
        transcendentals=0,
    )


class _Held(NamedTuple):
    """What is held of two windows at a time.

    Attributes:
        left: Rows of the left side, one for each run.
        right: Rows of the right side, one for each entry.
        starts: First entry of each run, and the end of the last.
        runs: Number of runs.
        sums: Products of the window by entry, summed over the columns of each lane.
        arrived: What tells of the arrival of rows: by side and window.
    """

    left: Any
    right: Any
    starts: Any
    runs: Any
    sums: Any
    arrived: Any


def _kernel(count, rows, others, next_rows, next_others, left, right, out, *held, here, dtype):
    held = _Held(*held)
    core, i = pl.program_id(0), pl.program_id(1)
    window, slot = core * here.grid[1] + i, lax.rem(i, 2)

    def listed(window):
        return (window < here.groups) & (window * _WINDOW < count[0])

    @pl.when((i == 0) & listed(window))
    def _():
        _start(held, left, rows, right, others, slot)

    @pl.when((i + 1 < here.grid[1]) & listed(window + 1))
    def _():
        _start(held, left, next_rows, right, next_others, 1 - slot)

    # Steps beyond the last window see its products again.
    @pl.when(window < here.groups)
    def _():
        out[...] = jnp.zeros_like(out)

    @pl.when(listed(window))
    def _():
        _wait(held, slot)
        lax.fori_loop(0, held.runs[slot], lambda r, _: _multiply(held, slot, r, dtype), 0)
        entry = window * _WINDOW + lax.broadcasted_iota(jnp.int32, (1, _WINDOW), 1)
        # Entries lie along sublanes; turned, each has a lane.
        total = jnp.sum(held.sums[...].T, axis=0, keepdims=True)
        out[0] = jnp.where(entry < count[0], total, 0.0)


def _copy(source, index, rows, place, arrived):
    at, to = pl.ds(index, 1), pl.ds(place, 1)
    return pltpu.make_async_copy(source.at[at, :], rows.at[to, :], arrived)


def _start(held: _Held, left, rows, right, others, slot) -> None:
    """Sends for the rows of a window."""

    def entry(i, runs):
        index, before = rows[0, 0, i], rows[0, 0, jnp.maximum(i - 1, 0)]
        new = (i == 0) | (index != before)

        @pl.when(new)
        def _():
            held.starts[slot, runs] = i
            _copy(left, index, held.left.at[slot], runs, held.arrived.at[0, slot]).start()

        other = others[0, 0, i]
        _copy(right, other, held.right.at[slot], i, held.arrived.at[1, slot]).start()
        return runs + new.astype(jnp.int32)

    runs = lax.fori_loop(0, _WINDOW, entry, jnp.int32(0), unroll=4)
    held.starts[slot, runs] = _WINDOW
    held.runs[slot] = runs


def _wait(held: _Held, slot) -> None:
    """Waits for the rows of a window; a semaphore counts bytes, whichever row they are of."""
    rows = held.right.at[slot]
    pltpu.make_async_copy(rows, rows, held.arrived.at[1, slot]).wait()

    def run(r, _):
        row = held.left.at[slot, pl.ds(r, 1), :]
        pltpu.make_async_copy(row, row, held.arrived.at[0, slot]).wait()
        return 0

    lax.fori_loop(0, held.runs[slot], run, 0)


def _multiply(held: _Held, slot, run, dtype):
    """Puts the products of a run's entries into its rows of `sums`, slab by slab."""
    start, stop = held.starts[slot, run], held.starts[slot, run + 1]

    def rounded(rows):
        return lists.unpacked(rows).astype(dtype).astype(jnp.float32)

    def slab(s, _):
        part = pl.ds(s * _SLAB, _SLAB)
        products = rounded(held.left[slot, pl.ds(run, 1), :]) * rounded(held.right[slot, part, :])
        pieces = [products[:, at : at + _LANES] for at in range(0, products.shape[1], _LANES)]
        entry = s * _SLAB + lax.broadcasted_iota(jnp.int32, (_SLAB, 1), 0)
        own = (entry >= start) & (entry < stop)
        held.sums[part, :] = jnp.where(own, _tree(pieces), held.sums[part, :])
        return 0

    return lax.fori_loop(lax.div(start, _SLAB), lax.div(stop + _SLAB - 1, _SLAB), slab, 0)


def _tree(terms: list):
    """Returns a sum, in pairs: one chain of additions would wait for each of them."""
    while len(terms) > 1:
        pairs = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + terms[2 * len(pairs) :]
    return terms[0]
