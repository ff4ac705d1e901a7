"""A loop over the segments of a list in tiles of fixed shape, with the work of what there is.

Segments are the slots of one group of `Entries`. They are taken in classes of about equal length
(1, 2, 3 to 4, 5 to 8, ...), so that a tile of [T, w] slots is at least half full; those longer
than a tile are added up piece by piece. The number of tiles follows the list, the shapes do not.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, PyTree

# Segments of a tile. A scatter of a single row becomes a slice update that copies its operand.
_LEAST = 2
# Slots of a tile. Measured on 2 CPU cores, D = 512: 256 and 512 are within 10 %, 128 is slower.
TILE = 256

State = TypeVar("State")
Sums = Callable[[Int32[Array, " T"], Int32[Array, "T w"], Bool[Array, "T w"]], PyTree]
Take = Callable[[State, Int32[Array, " T"], PyTree], State]


def fold_segments(
    offsets: Int32[Array, " _"], sums: Sums, take: Take, state: State, *, tile: int = TILE
) -> State:
    """Folds what is summed over each segment that has a slot.

    Args:
        offsets: Where each group's slots start.
        sums: `(groups [T], slots [T, w], valid [T, w])` to a tree of sums over w, `[T, ...]` each.
            Slots that are not valid must add nothing.
        take: `(state, groups [T], sums)` to the next state. Each group is given once; the tile is
            filled up with group G, which there is not.
        state: First state.
        tile: Slots of a tile, a power of two.

    Returns:
        The last state.
    """
    groups = offsets.size - 1
    lengths = offsets[1:] - offsets[:-1]
    widths = [1 << i for i in range(tile.bit_length())]
    edges = jnp.asarray([0, *widths], jnp.int32)
    kind = jnp.sum(lengths[:, None] > edges[None, :], axis=1, dtype=jnp.int32)
    order = jnp.argsort(kind, stable=True).astype(jnp.int32)
    order = jnp.concatenate([order, jnp.full(tile, groups, jnp.int32)])
    ends = [jnp.sum(kind <= i, dtype=jnp.int32) for i in range(len(edges) + 1)]
    for i, width in enumerate(widths, 1):
        several = max(tile // width, _LEAST)
        state = _fold_class(
            offsets, order, ends[i - 1 : i + 1], (several, width), sums, take, state
        )
    return _fold_long(offsets, order, ends[-2:], tile, sums, take, state)


def _fold_class(offsets, order, bounds, shape, sums, take, state):
    """Folds segments of at most `width` slots, several at a time."""
    several, width = shape

    def step(carry):
        at, state = carry
        valid = at + jnp.arange(several, dtype=jnp.int32) < bounds[1]
        group = jnp.where(valid, lax.dynamic_slice(order, (at,), (several,)), offsets.size - 1)
        slots, filled = _slots(offsets, group, 0, width)
        return at + several, take(state, group, sums(group, slots, filled))

    return lax.while_loop(lambda carry: carry[0] < bounds[1], step, (bounds[0], state))[1]


def _fold_long(offsets, order, bounds, width, sums, take, state):
    """Folds segments of more slots than a tile has, one at a time, piece by piece."""

    def step(carry):
        at, state = carry
        group = jnp.full(_LEAST, offsets.size - 1).at[0].set(order[at])

        def piece(i, total):
            return jax.tree.map(jnp.add, total, sums(group, *_slots(offsets, group, i, width)))

        first = sums(group, *_slots(offsets, group, 0, width))
        length = offsets[group[0] + 1] - offsets[group[0]]
        total = lax.fori_loop(1, -(-length // width), piece, first)
        return at + 1, take(state, group, total)

    return lax.while_loop(lambda carry: carry[0] < bounds[1], step, (bounds[0], state))[1]


def _slots(offsets, group, piece, width):
    """Returns the slots of a piece of each group, and which of them exist."""
    ends = jnp.concatenate([offsets, offsets[-1:]])
    slots = ends[group][:, None] + piece * width + jnp.arange(width, dtype=jnp.int32)[None, :]
    filled = slots < ends[group + 1][:, None]
    return jnp.where(filled, slots, 0), filled


def weighted_sum(
    source: Float[Array, "S D"], indices: Int32[Array, "T w"], weights: Float[Array, "T w"]
) -> Float[Array, "T D"]:
    """Returns sum_w weights * source[indices] in float32; the gathered rows are not kept."""
    return jnp.sum(source[indices].astype(jnp.float32) * weights[:, :, None], axis=1)
