"""Sums over segments of a list by prefix sums: the same bits in every run, and no scatter."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

_BLOCK = 128


def segment_sums(values: Float[Array, "C N"], offsets: Int32[Array, " _"]) -> Float[Array, "C G"]:
    """Returns the sum of each row's values from each offset to the next.

    Prefix sums start anew in each block of 128, and so do those of the blocks' sums, so that a
    short segment is not the small difference of large numbers.

    Args:
        values: Numbers, finite also where no segment holds them.
        offsets: Where each of G segments starts, and where the last one ends, [G + 1].
    """
    return _between(values, offsets[:-1], offsets[1:])


def _between(values, start, end):
    """Returns sums from `start` to `end`; of an end before its start, anything."""
    rows, size = values.shape
    # One block more, which ends at the end are in.
    blocks = jnp.pad(values, ((0, 0), (0, _BLOCK - size % _BLOCK))).reshape(rows, -1, _BLOCK)
    before = jnp.cumsum(blocks, axis=2) - blocks
    first, last = start // _BLOCK, end // _BLOCK
    head, tail = (before[:, at // _BLOCK, at % _BLOCK] for at in (start, end))
    if size < _BLOCK:
        return tail - head
    totals = jnp.sum(blocks, axis=2)
    across = totals[:, first] - head + _between(totals, first + 1, last) + tail
    return jnp.where((first == last)[None, :], tail - head, across)
