"""The n largest scores of a matrix as a list of places: BatchTopK without sorting the batch.

A pivot near the last step's threshold cuts out few more candidates than are wanted. That at least
`n` scores surely reach it, and that the list holds all that may, is counted over all devices, and
it proves that the n largest are among them; otherwise the pivot moves and the count is taken again.
The exact threshold is then searched in the short list. What crosses devices is counts.

`largest` marks the same set by bisection alone, and subnormal scores too.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, UInt32

from .bisect import last_that, number
from .bitmap import Entries, entries, first_rows, kept, places
from .scores import ABOVE, LOWEST, Scores

# A sixteenth of an octave: 4 to 6 % below the last threshold.
_MARGIN = 1 << 19


class Selection(NamedTuple):
    """What was selected.

    Attributes:
        entries: The selected places by latent; indices are rows.
        values: `x W^T + b` of each.
        threshold: Bit pattern of the lowest score selected; of +inf and more if there is none.
        passes: Passes over all scores; 1 where the guess was right.
    """

    entries: Entries
    values: Float[Array, " N"]
    threshold: Int32[Array, ""]
    passes: Int32[Array, ""]


class Candidates(NamedTuple):
    """Listed scores, 0 where a slot is none.

    Attributes:
        entries: Their places by latent.
        values: `x W^T + b` of each.
        scores: Scores.
    """

    entries: Entries
    values: Float[Array, " N"]
    scores: Float[Array, " N"]


def select(scores: Scores, n: Int32[Array, ""], *, size: int, near: Int32[Array, ""]) -> Selection:
    """Selects the `n` largest positive scores; ties go to the first places.

    Places are ordered by row, then by latent over all devices. NaN is never selected, nor are
    scores below 2^-126. Where the list cannot hold the candidates, the scores are those of the
    products of a pass; else those of listed values.

    Args:
        scores: Scores of this device's latents.
        n: Number to select over all devices, at most `size`.
        size: Slots of the list; static.
        near: Bit pattern that the threshold is expected near to, such as the last step's.

    Returns:
        This device's part of the selection.
    """
    search = _narrow(scores, n, 2 * size, near)
    complete = (search.count >= n) | (search.low < LOWEST)
    entries, values, threshold, passes = lax.cond(
        complete & (search.marked <= 2 * size),
        lambda: _among_candidates(scores, n, size, search.words),
        lambda: _among_all(scores, n, size),
    )
    return Selection(entries, values, threshold, search.passes + passes)


def candidates(scores: Scores, words: UInt32[Array, "W L"], size: int) -> Candidates:
    """Lists the places of a map, at most `size`."""
    listed = entries(words, size)
    values = scores.values(listed.indices, listed.groups, listed.offsets[-1])
    valid = jnp.arange(size, dtype=jnp.int32) < listed.offsets[-1]
    return Candidates(listed, values, jnp.where(valid, values * scores.norms[listed.groups], 0.0))


class _Search(NamedTuple):
    low: Array  # n surely reach it, and too many may; LOWEST - 1 stands for all.
    high: Array  # Fewer than n surely reach it.
    pivot: Array
    stride: Array
    words: Array
    count: Array
    marked: Array
    passes: Array


def _narrow(scores: Scores, n, most: int, near) -> _Search:
    """Finds a pivot that `n` scores surely reach and for which at most `most` are marked.

    Without one, either fewer than `n` scores are surely positive, `low` is below LOWEST, and all
    that may be are marked; or so many equal the n-th largest, or nearly do, that the list cannot
    hold them.
    """

    def done(s: _Search):
        return (s.passes > 0) & ((s.count >= n) & (s.marked <= most) | (s.high - s.low <= 1))

    def look(s: _Search) -> _Search:
        words, reached = scores.marks(number(s.pivot))
        # Cut off, so that the sum over devices fits into 32 bits; more than `most` is too many.
        counts = jnp.minimum(jnp.stack([reached, places(words)]), most + 1)
        count, marked = scores.share.total(counts)
        low = jnp.where((count >= n) & (marked > most), s.pivot, s.low)
        high = jnp.where(count < n, s.pivot, s.high)
        middle = low + (high - low) // 2
        down = jnp.maximum(s.pivot - s.stride, middle)
        up = jnp.minimum(s.pivot + s.stride, middle)
        pivot = jnp.where(count < n, down, up)
        stride = jnp.minimum(s.stride, 1 << 28) * 2
        return _Search(low, high, pivot, stride, words, count, marked, s.passes + 1)

    return lax.while_loop(
        lambda s: ~done(s),
        look,
        _Search(
            low=jnp.int32(LOWEST - 1),
            high=jnp.int32(ABOVE),
            pivot=jnp.clip(near - _MARGIN, LOWEST, ABOVE - 1),
            stride=jnp.int32(_MARGIN),
            words=jnp.zeros((-(-scores.rows // 32), scores.norms.size), jnp.uint32),
            count=jnp.int32(-1),
            marked=jnp.int32(0),
            passes=jnp.int32(0),
        ),
    )


def _among_candidates(scores: Scores, n, size: int, words):
    """Selects among listed candidates; no further passes."""
    listed, share = candidates(scores, words, 2 * size), scores.share
    rows, place = listed.entries.indices, listed.entries.groups + share.first
    bits = lax.bitcast_convert_type(listed.scores, jnp.int32)

    def count(chosen):
        return share.total(jnp.sum(chosen, dtype=jnp.int32))

    n = jnp.minimum(n, count(bits >= LOWEST))
    threshold = last_that(lambda pivot: count(bits >= pivot) >= n, LOWEST, ABOVE, share.pivots)
    above = count(bits > threshold)
    equal = bits == threshold
    ties = count(equal) > n - above

    def first_ones():
        def among(row, last):
            return equal & ((rows < row) | (rows == row) & (place <= last))

        return among(*_earliest(lambda *at: count(among(*at)), n - above, scores))

    keep = (n > 0) & ((bits > threshold) | lax.cond(ties, first_ones, lambda: equal))
    return *kept(listed.entries, listed.values, keep, size), threshold, jnp.int32(0)


def _among_all(scores: Scores, n, size: int):
    """Selects by products alone, in a pass for each of the threshold's bits."""
    share = scores.share

    def count(words):
        return share.total(jnp.minimum(places(words), size + 1))

    def reached(pattern):
        return scores.reaching(number(pattern))

    n = jnp.minimum(n, count(reached(jnp.int32(LOWEST))))
    threshold = last_that(lambda pivot: count(reached(pivot)) >= n, LOWEST, ABOVE)
    above = reached(threshold + 1)
    equal = reached(threshold) & ~above
    place = jnp.arange(scores.norms.size, dtype=jnp.int32) + share.first

    def among(row, last):
        before = first_rows(len(equal), row)[:, None]
        own = first_rows(len(equal), row + 1)[:, None] & ~before
        return equal & (before | jnp.where(place[None, :] <= last, own, jnp.uint32(0)))

    at = _earliest(lambda *at: count(among(*at)), n - count(above), scores)
    found = entries(above | among(*at), size)
    values = scores.values(found.indices, found.groups, found.offsets[-1])
    return found, values, threshold, jnp.int32(33)


def _earliest(count: Callable, needed, scores: Scores):
    """Returns the row, and the latent in it, at or before which `needed` entries are."""
    latents = scores.share.total(jnp.int32(scores.norms.size))
    row = -last_that(lambda r: count(-r, latents) >= needed, 1 - scores.rows, 1)
    return row, -last_that(lambda i: count(row, -i) >= needed, 1 - latents, 1)
