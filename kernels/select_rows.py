"""The n largest scores of each row as a list of places: TopK without sorting the rows.

Latents are put into groups. The n-th largest of the groups' maxima is reached by n scores at least,
hence by the n largest, and by few more: it marks the candidates, and the exact cut is searched in
their short list. For streamed scores, maxima are of what scores surely reach, marks of what may.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from .bisect import number
from .bitmap import by_index, entries, kept, pack, row_counts
from .cut_rows import cut
from .scores import ABOVE, LOWEST, Scores
from .select import Selection, candidates

# Latents of a group, where groups are many more than are selected.
_GROUP = 32


def select_rows(scores: Scores, n: Int32[Array, ""], *, most: int) -> Selection:
    """Selects the `n` largest positive scores of each row; ties go to the first latents.

    Rules are those of `select`; its passes are two, or three where some row has more candidates
    than the list holds.

    Args:
        scores: Scores of this device's latents.
        n: Number to select in each row, over all devices, at most `most`.
        most: Slots of a row; static.

    Returns:
        This device's part of the selection.
    """
    share, latents = scores.share, scores.norms.size
    place = share.first + jnp.arange(latents, dtype=jnp.int32)

    def mark(keys):
        pivot = _pivot(_maxima(keys(-1), most), n, scores)
        return pack(keys(1) >= pivot[:, None])

    def among_all():
        def part(keys):
            level, last = cut(keys(), place[None, :], n, share)
            level, last = number(level)[:, None], last[:, None]
            return pack((keys() > level) | (keys() == level) & (place[None, :] <= last))

        found = entries(scores.by_rows(part), most * scores.rows)
        return found, scores.values(found.indices, found.groups, found.offsets[-1])

    words = scores.by_rows(mark)
    crowded = share.total(jnp.any(row_counts(words) > 2 * most).astype(jnp.int32)) > 0
    found, values = lax.cond(crowded, among_all, lambda: _among_listed(scores, n, most, words))
    return Selection(found, values, jnp.int32(ABOVE), 2 + crowded.astype(jnp.int32))


def _maxima(keys: Float[Array, "C L"], most: int) -> Float[Array, "C G"]:
    """Returns each group's largest; at least four groups for each key selected, if they allow it.

    A group's latents are a stride apart, so that maxima are taken of whole vectors.
    """
    size = max(1, min(_GROUP, keys.shape[1] // (4 * most)))
    filled = jnp.pad(keys, ((0, 0), (0, -keys.shape[1] % size)), constant_values=-1.0)
    return jnp.max(filled.reshape(len(keys), size, -1), axis=1)


def _pivot(maxima: Float[Array, "C G"], n, scores: Scores) -> Float[Array, " C"]:
    """Returns what at least `n` scores of each row reach, or all positive ones."""
    share = scores.share
    level, _ = cut(maxima, jnp.zeros((1, maxima.shape[1]), jnp.int32), n, share)
    positive = share.total(jnp.sum(maxima > 0, axis=1, dtype=jnp.int32))
    level = jnp.where(positive >= n, level, LOWEST)
    return number(level)


def _among_listed(scores: Scores, n, most: int, words):
    """Selects among listed candidates, of which each row has at most twice `most`."""
    rows, width, share = scores.rows, 2 * most, scores.share
    listed = candidates(scores, words, width * rows)
    row, places = listed.entries.indices, share.first + listed.entries.groups
    offsets, slots = by_index(listed.entries, rows)
    at = jnp.where(slots < slots.size, row * width + slots - offsets[row], slots.size)

    def arranged(a):
        out = jnp.zeros(rows * width, a.dtype).at[at].set(a, mode="drop", unique_indices=False)
        return out.reshape(rows, width)

    level, last = cut(arranged(listed.scores), arranged(places), n, share)
    level = number(level)[row]
    keep = (listed.scores > level) | (listed.scores == level) & (places <= last[row])
    keep = keep & (slots < slots.size)
    return kept(listed.entries, listed.values, keep, most * rows)
