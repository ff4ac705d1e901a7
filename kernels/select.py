"""The n largest scores of a matrix as a list of places: BatchTopK without sorting the batch.

A pivot near the last step's threshold cuts out few more candidates than are wanted. That at least
`n` scores reach it, and no more than the list holds, is counted over all devices, and it proves
that the n largest are among them; otherwise the pivot moves and the count is taken again. The
exact threshold is then searched in the short list. What crosses devices is counts.

`largest` marks the same set by bisection alone, and subnormal scores too.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from .bisect import last_that
from .bitmap import Entries, entries, pack, places

# Patterns of the smallest normal float and of the first one above +inf. Processors that flush
# subnormal numbers would take a subnormal pivot for 0.
LOWEST, ABOVE = 0x00800000, 0x7F800001
# A sixteenth of an octave: 4 to 6 % below the last threshold.
_MARGIN = 1 << 19


class Selection(NamedTuple):
    """What was selected.

    Attributes:
        entries: The selected places by latent; indices are rows.
        threshold: Bit pattern of the lowest score selected; of +inf and more if there is none.
        passes: Passes over all scores; 1 where the guess was right.
    """

    entries: Entries
    threshold: Int32[Array, ""]
    passes: Int32[Array, ""]


class Scores(NamedTuple):
    """Scores of all (row, latent) pairs, as what they are computed from; never held as an array.

    Attributes:
        pre: Products of the encoder, this device's latents.
        bias: Encoder bias.
        norms: Code norms, 0 or more.
        first: Number of latents on the devices before this one.
        axes: Mesh axes over which the latents are split.
    """

    pre: Float[Array, "R L"]
    bias: Float[Array, " L"]
    norms: Float[Array, " L"]
    first: Int32[Array, ""]
    axes: tuple[str, ...] = ()

    def all(self) -> Float[Array, "R L"]:
        """Returns `(pre + bias) * norms`, to be reduced in the same program."""
        return (self.pre + self.bias[None, :]) * self.norms[None, :]

    def values(self, rows: Int32[Array, " N"], latents: Int32[Array, " N"]) -> Float[Array, " N"]:
        """Returns `pre + bias` at places."""
        return self.pre[rows, latents] + self.bias[latents]

    def total(self, local: Array) -> Array:
        """Returns the sum over devices of what each has of its latents."""
        return lax.psum(local, self.axes) if self.axes else local


def select(scores: Scores, n: Int32[Array, ""], *, size: int, near: Int32[Array, ""]) -> Selection:
    """Selects the `n` largest positive scores; ties go to the first places.

    Places are ordered by row, then by latent over all devices. NaN is never selected, nor are
    scores below 2^-126.

    Args:
        scores: Scores of this device's latents.
        n: Number to select over all devices, at most `size`.
        size: Slots of the list; static.
        near: Bit pattern that the threshold is expected near to, such as the last step's.

    Returns:
        This device's part of the selection.
    """
    search = _narrow(scores, n, 2 * size, near)
    fits = (search.count >= n) & (search.count <= 2 * size)
    crowded = ~fits & (search.low >= LOWEST)
    found, threshold = lax.cond(
        crowded,
        lambda: _among_equals(scores, n, size, search.low),
        lambda: _among_candidates(scores, n, size, search.words),
    )
    return Selection(found, threshold, search.passes)


class _Search(NamedTuple):
    low: Array  # More than the list holds reach it; LOWEST - 1 stands for all.
    high: Array  # Fewer than n reach it.
    pivot: Array
    stride: Array
    words: Array
    count: Array
    passes: Array


def _narrow(scores: Scores, n, most: int, near) -> _Search:
    """Finds a pivot that at least `n` and at most `most` scores reach, if there is one.

    Without one, either all positive scores are fewer than `n` and in `words`, or so many equal
    `low` that the list cannot hold them.
    """

    def done(s: _Search):
        return (s.passes > 0) & ((s.count >= n) & (s.count <= most) | (s.high - s.low <= 1))

    def look(s: _Search) -> _Search:
        # The barrier keeps the scores inside of the loop: one pass, and no array of them.
        norms, bias, pivot = lax.optimization_barrier((scores.norms, scores.bias, s.pivot))
        words = pack(scores._replace(norms=norms, bias=bias).all() >= _float(pivot))
        # Cut off, so that the sum over devices fits into 32 bits; more than `most` is too many.
        count = scores.total(jnp.minimum(places(words), most + 1))
        low = jnp.where(count > most, s.pivot, s.low)
        high = jnp.where(count < n, s.pivot, s.high)
        middle = low + (high - low) // 2
        down = jnp.maximum(s.pivot - s.stride, middle)
        up = jnp.minimum(s.pivot + s.stride, middle)
        pivot = jnp.where(count < n, down, up)
        stride = jnp.minimum(s.stride, 1 << 28) * 2
        return _Search(low, high, pivot, stride, words, count, s.passes + 1)

    rows, latents = scores.pre.shape
    return lax.while_loop(
        lambda s: ~done(s),
        look,
        _Search(
            low=jnp.int32(LOWEST - 1),
            high=jnp.int32(ABOVE),
            pivot=jnp.clip(near - _MARGIN, LOWEST, ABOVE - 1),
            stride=jnp.int32(_MARGIN),
            words=jnp.zeros((-(-rows // 32), latents), jnp.uint32),
            count=jnp.int32(-1),
            passes=jnp.int32(0),
        ),
    )


def _among_candidates(scores: Scores, n, size: int, words):
    """Selects among listed candidates."""
    latents = scores.pre.shape[1]
    listed = entries(words, 2 * size)
    valid = jnp.arange(2 * size, dtype=jnp.int32) < listed.offsets[-1]
    values = scores.values(listed.indices, listed.groups) * scores.norms[listed.groups]
    bits = jnp.where(valid, lax.bitcast_convert_type(values, jnp.int32), 0)

    def count(chosen):
        return scores.total(jnp.sum(chosen, dtype=jnp.int32))

    n = jnp.minimum(n, count(valid))
    threshold = last_that(lambda pivot: count(bits >= pivot) >= n, LOWEST, ABOVE)
    above = count(bits > threshold)
    equal = bits == threshold
    ties = count(equal) > n - above
    rows, place = listed.indices, listed.groups + scores.first

    def first_ones():
        before = _earliest(lambda r, i: count(equal & _up_to(rows, place, r, i)), n - above, scores)
        return equal & _up_to(rows, place, *before)

    keep = (n > 0) & ((bits > threshold) | lax.cond(ties, first_ones, lambda: equal))
    kept = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(keep.astype(jnp.int32))])
    slot = jnp.where(keep, kept[:-1], size)
    offsets = kept[listed.offsets]

    def compact(a):
        return jnp.zeros(size, jnp.int32).at[slot].set(a, mode="drop", unique_indices=False)

    groups = jnp.minimum(compact(listed.groups), latents - 1)
    return Entries(offsets, groups, compact(rows)), threshold


def _among_equals(scores: Scores, n, size: int, threshold):
    """Selects where more scores equal the threshold than the list of candidates holds."""
    values, value = scores.all(), _float(threshold)
    rows = lax.broadcasted_iota(jnp.int32, values.shape, 0)
    place = lax.broadcasted_iota(jnp.int32, values.shape, 1) + scores.first

    def count(chosen):
        return scores.total(jnp.minimum(places(pack(chosen)), size + 1))

    needed = n - count(values > value)
    r, i = _earliest(
        lambda r, i: count((values == value) & _up_to(rows, place, r, i)), needed, scores
    )
    words = pack((values > value) | (values == value) & _up_to(rows, place, r, i))
    return entries(words, size), threshold


def _up_to(rows, place, r, i):
    """Tells whether a place is at or before row `r`, latent `i`."""
    return (rows < r) | (rows == r) & (place <= i)


def _earliest(count: Callable, needed, scores: Scores):
    """Returns the first place at or before which `needed` entries are."""
    rows, latents = scores.pre.shape
    latents = scores.total(jnp.int32(latents))
    r = -last_that(lambda r: count(-r, latents) >= needed, 1 - rows, 1)
    return r, -last_that(lambda i: count(r, -i) >= needed, 1 - latents, 1)


def _float(pattern: Int32[Array, ""]) -> Float[Array, ""]:
    return lax.bitcast_convert_type(pattern, jnp.float32)
