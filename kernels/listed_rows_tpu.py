"""Rows of a source in a TPU's HBM, fetched in the order of a list and added up group by group.

The list is cut into windows of 128 entries. While one window's rows are added up, those of the next
one are on their way, each by a copy of its own, and the indices of the one after that arrive in
scalar memory. Windows follow the list, not the groups: short and long groups cost the same per
entry, and the order of the sum is that of the list. Eight entries fill the eight sublanes of a
register; a group that starts or ends inside of such a slab masks the others' entries.

A bfloat16 row cannot be copied alone, since two of them share each 32-bit word. Such a source is
packed beforehand: the left half of its columns in the low, the right half in the high half-words.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

WINDOW = 128
# A chip of two cores divides the first axis of the grid between them.
CORES = 2
_SLAB = 8
_SLABS = WINDOW // _SLAB
_INDICES, _WEIGHTS, _ROWS = 0, 1, 2


class Listed(NamedTuple):
    """Operands of a kernel, in HBM.

    Attributes:
        source: Rows, [S, D] float32 or [S, D / 2] uint32.
        indices: Row of each entry, [windows, 1, WINDOW].
        weights: Weight of each entry, [windows, 1, WINDOW].
    """

    source: jax.Array
    indices: jax.Array
    weights: jax.Array


class Scratch(NamedTuple):
    """What is held of two windows at a time, and the sum of a group by sublane."""

    rows: Any
    indices: Any
    weights: Any
    factors: Any
    total: Any
    arrived: Any
    semaphores: Any


class Blocks(NamedTuple):
    """Groups in blocks, and the blocks divided between the cores of a chip.

    Attributes:
        groups: Number of groups.
        size: Groups of a block.
        grid: Cores, and blocks of each; the last core may have some that are not there.
    """

    groups: int
    size: int
    grid: tuple[int, int]

    def index(self, core, i, *_) -> tuple[Any, int]:
        """Returns which block of an array by group a step of the grid sees."""
        return jnp.minimum(core * self.grid[1] + i, pl.cdiv(self.groups, self.size) - 1), 0

    def first(self) -> Any:
        """Returns the first group of the block that this step of a kernel's grid is at."""
        return (pl.program_id(0) * self.grid[1] + pl.program_id(1)) * self.size


def blocks(groups: int, size: int) -> Blocks:
    """Divides groups into blocks and between cores; a single block is for one core."""
    count = pl.cdiv(groups, size)
    cores = min(CORES, count)
    return Blocks(groups, size, (cores, pl.cdiv(count, cores)))


def listed(source: jax.Array, indices: jax.Array, weights: jax.Array) -> Listed:
    """Brings a list of at least one entry into the form that kernels read."""
    filled = -indices.size % WINDOW
    indices = jnp.pad(indices, (0, filled)).reshape(-1, 1, WINDOW)
    weights = jnp.pad(weights, (0, filled)).reshape(-1, 1, WINDOW)
    return Listed(packed(source), indices, weights.astype(jnp.float32))


def packed(source: jax.Array) -> jax.Array:
    """Brings a source into a form of which single rows can be copied."""
    width = source.shape[1]
    if source.dtype != jnp.bfloat16 or width % 256:
        return source.astype(jnp.float32)
    # Cut first: the compiler would keep the words of all columns as an array.
    halves = source[:, : width // 2], source[:, width // 2 :]
    low, high = (lax.bitcast_convert_type(h, jnp.uint16).astype(jnp.uint32) for h in halves)
    return low | (high << 16)


def columns(source: jax.Array) -> int:
    """Returns how many columns the rows of a source have, packed or not."""
    return source.shape[1] * (2 if source.dtype == jnp.uint32 else 1)


def unpacked(rows: jax.Array) -> jax.Array:
    """Returns rows of a source, as they were copied, in float32."""
    if rows.dtype == jnp.float32:
        return rows
    halves = rows << 16, rows & jnp.uint32(0xFFFF0000)
    return jnp.concatenate([lax.bitcast_convert_type(h, jnp.float32) for h in halves], axis=1)


def scratch(source: jax.Array) -> Scratch:
    """Returns the scratch shapes for a source as `listed` gives it."""
    width = source.shape[1]
    return Scratch(
        rows=pltpu.VMEM((2, WINDOW, width), source.dtype),
        indices=pltpu.SMEM((2, 1, WINDOW), jnp.int32),
        weights=pltpu.VMEM((2, 1, WINDOW), jnp.float32),
        factors=pltpu.VMEM((WINDOW, WINDOW), jnp.float32),
        total=pltpu.VMEM((_SLAB, columns(source)), jnp.float32),
        arrived=pltpu.SMEM((1,), jnp.int32),
        semaphores=pltpu.SemaphoreType.DMA((2, 3)),
    )


def scratch_bytes(source: jax.Array) -> int:
    """Returns how much VMEM the scratch takes, nearly."""
    return 2 * WINDOW * source.shape[1] * 4 + 2 * _SLAB * source.shape[1] * 4 + 2**18


def cost(given: Listed, streamed: int = 0, updated: int = 0) -> pl.CostEstimate:
    """Returns what it costs to add up the rows of all entries.

    Args:
        given: Operands.
        streamed: Bytes of blocks that are read or written beside.
        updated: Numbers that Adam's rule moves: about 12 operations and a square root each.
    """
    entries = given.indices.size
    fetched = entries * (given.source.shape[1] * 4 + 8)
    return pl.CostEstimate(
        flops=2 * entries * columns(given.source) + 12 * updated,
        bytes_accessed=fetched + streamed,
        transcendentals=updated,
    )


def begin(given: Listed, held: Scratch, first) -> None:
    """Starts the fetch at the window that entry `first` is in. Every `begin` needs its `end`."""
    window = lax.div(first, WINDOW)
    held.arrived[0] = window - 1
    _start_list(given, held, window)
    _start_rows(given, held, window)
    _start_list(given, held, window + 1)


def end(given: Listed, held: Scratch) -> None:
    """Waits for what is still on its way."""
    window = held.arrived[0] + 1
    _wait_rows(given, held, window)
    _wait_list(given, held, window + 1)


def add_up(given: Listed, held: Scratch, start, stop, put: Callable[[jax.Array], None]) -> None:
    """Hands the weighted sum of the rows of entries `start` to `stop`, [1, D], to `put`.

    Calls must go up the list; nothing is put where there is no entry.
    """

    @pl.when(stop > start)
    def _():
        held.total[...] = jnp.zeros_like(held.total)

        def slab(i, _):
            window, place = lax.div(i, _SLABS), lax.rem(i, _SLABS)

            @pl.when(window > held.arrived[0])
            def _():
                _turn(given, held, window)

            entry = i * _SLAB + lax.broadcasted_iota(jnp.int32, (_SLAB, 1), 0)
            own = (entry >= start) & (entry < stop)
            factor = held.factors[pl.ds(place * _SLAB, _SLAB), :][:, :1]
            _add(held, held.rows[lax.rem(window, 2), pl.ds(place * _SLAB, _SLAB), :], factor, own)
            return 0

        lax.fori_loop(lax.div(start, _SLAB), lax.div(stop + _SLAB - 1, _SLAB), slab, 0)
        put(jnp.sum(held.total[...], axis=0, keepdims=True))


def add_up_block(
    given: Listed,
    held: Scratch,
    offsets,
    out,
    first,
    *,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Puts the sums of this step's block of groups into the rows of `out` that have entries.

    The first step of a core is 0 on the grid's second axis, and has a block.

    Args:
        given: Operands.
        held: Scratch.
        offsets: Where each group's entries start, in scalar memory.
        out: Ref, [groups of a block, D].
        first: First group of the block; behind all groups where the step has none.
        before: Called before the sums of a block that is there.
        after: Called after them.
    """
    i, groups = pl.program_id(1), offsets.shape[0] - 1

    @pl.when(i == 0)
    def _():
        begin(given, held, offsets[jnp.minimum(first, groups)])

    @pl.when(first < groups)
    def _():
        before()

        def group(g, _):
            def put(row):
                out[pl.ds(g, 1), :] = row

            add_up(given, held, offsets[first + g], offsets[first + g + 1], put)
            return 0

        lax.fori_loop(0, jnp.minimum(groups - first, out.shape[0]), group, 0)
        after()

    @pl.when(i == pl.num_programs(1) - 1)
    def _():
        end(given, held)


def _add(held: Scratch, rows, factor, own) -> None:
    """Adds eight weighted rows; a select, so that another group's NaN stays there."""
    held.total[...] += jnp.where(own, unpacked(rows) * factor, 0.0)


def _turn(given: Listed, held: Scratch, window) -> None:
    """Makes a window the current one, and sends for the rows of the next."""
    _wait_rows(given, held, window)
    # A row of weights becomes a column, one weight to a sublane.
    row = held.weights[lax.rem(window, 2)]
    held.factors[...] = jnp.broadcast_to(row, (WINDOW, WINDOW)).T
    held.arrived[0] = window
    _start_rows(given, held, window + 1)
    _start_list(given, held, window + 2)


def _list_copies(given: Listed, held: Scratch, window):
    # Beyond the end, the last window is fetched again: the count of copies stays even.
    at, slot = jnp.minimum(window, given.indices.shape[0] - 1), lax.rem(window, 2)
    return (
        pltpu.make_async_copy(
            given.indices.at[at], held.indices.at[slot], held.semaphores.at[slot, _INDICES]
        ),
        pltpu.make_async_copy(
            given.weights.at[at], held.weights.at[slot], held.semaphores.at[slot, _WEIGHTS]
        ),
    )


def _start_list(given: Listed, held: Scratch, window) -> None:
    for copy in _list_copies(given, held, window):
        copy.start()


def _wait_list(given: Listed, held: Scratch, window) -> None:
    for copy in _list_copies(given, held, window):
        copy.wait()


def _start_rows(given: Listed, held: Scratch, window) -> None:
    _wait_list(given, held, window)
    slot = lax.rem(window, 2)

    def fetch(i, _):
        pltpu.make_async_copy(
            given.source.at[pl.ds(held.indices[slot, 0, i], 1), :],
            held.rows.at[slot, pl.ds(i, 1), :],
            held.semaphores.at[slot, _ROWS],
        ).start()
        return 0

    lax.fori_loop(0, WINDOW, fetch, 0, unroll=8)


def _wait_rows(given: Listed, held: Scratch, window) -> None:
    """Waits for all rows at once: a semaphore counts bytes."""
    slot = lax.rem(window, 2)
    rows = held.rows.at[slot]
    pltpu.make_async_copy(rows, rows, held.semaphores.at[slot, _ROWS]).wait()
