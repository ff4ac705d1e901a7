"""Sets of places in a matrix as bit maps, and their enumeration without sorting or scattering.

A map of an [R, L] matrix is `[ceil(R / 32), L]` words of 32 rows each. Packing one is a single
vectorised pass; counting it and finding its i-th place (rank and select) look at words, of which
there are 32 times fewer than places.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, UInt32

# Rows of a word.
WORD = 32


class Entries(NamedTuple):
    """Places of a matrix in groups: by latent, or by row.

    Slots from `offsets[-1]` on are not places; their groups and indices are in range.

    Attributes:
        offsets: Where each group's slots start; the last is their number, [G + 1].
        groups: Group of each slot, ascending, [N].
        indices: Place of each slot in its group, ascending within the group, [N].
    """

    offsets: Int32[Array, " _"]
    groups: Int32[Array, " N"]
    indices: Int32[Array, " N"]


def pack(chosen: Bool[Array, "R L"]) -> UInt32[Array, "W L"]:
    """Packs 32 rows into each word, the lowest row in the lowest bit."""
    rows, latents = chosen.shape
    chosen = jnp.pad(chosen, ((0, -rows % WORD), (0, 0)))
    bits = (jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32))[None, :, None]
    words = jnp.where(chosen.reshape(-1, WORD, latents), bits, jnp.uint32(0))
    return jnp.sum(words, axis=1, dtype=jnp.uint32)


def pack_places(
    groups: Int[Array, " N"], indices: Int[Array, " N"], count: Int[Array, ""], shape
) -> UInt32[Array, "W G"]:
    """Packs the first `count` of listed places, all different, of a [size of group, G] matrix."""
    size, columns = shape
    bits = jnp.uint32(1) << (indices % WORD).astype(jnp.uint32)
    valid = jnp.arange(groups.size, dtype=jnp.int32) < count
    words = jnp.zeros((-(-size // WORD), columns), jnp.uint32)
    return words.at[indices // WORD, groups].add(jnp.where(valid, bits, jnp.uint32(0)))


def places(words: UInt32[Array, "W G"]) -> Int32[Array, ""]:
    """Counts the places."""
    return jnp.sum(lax.population_count(words).astype(jnp.int32))


def row_counts(words: UInt32[Array, "W L"]) -> Int32[Array, " R"]:
    """Counts the places of each row, those of the last word's missing rows included."""
    words = jnp.pad(words, ((0, 0), (0, -words.shape[1] % WORD)))
    parts = words.reshape(len(words), 1, WORD, -1)
    bits = (parts >> jnp.arange(WORD, dtype=jnp.uint32)[None, :, None, None]) & 1
    # Two sums: the first adds whole vectors, and in one the second would go number by number.
    counts = lax.optimization_barrier(jnp.sum(bits.astype(jnp.int32), axis=2))
    return jnp.sum(counts, axis=2).reshape(-1)


def entries(words: UInt32[Array, "W G"], size: int) -> Entries:
    """Lists the places by column, and within a column by row.

    Args:
        words: A bit map.
        size: Slots; it must have no more places than that.

    Returns:
        Groups are columns, indices are rows.
    """
    columns = words.T
    held = jnp.cumsum(lax.population_count(columns).astype(jnp.int32), axis=1)  # [G, W]
    offsets = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(held[:, -1])])
    slots = jnp.arange(size, dtype=jnp.int32)
    # How many groups have ended at or before a slot.
    ended = jnp.zeros(size, jnp.int32).at[offsets[1:-1]].add(1, mode="drop")
    groups = jnp.cumsum(ended)
    rank = slots - offsets[groups]
    word = _word_of(held, groups, rank)
    value = columns[groups, word]
    rank = rank - (held[groups, word] - lax.population_count(value).astype(jnp.int32))
    return Entries(offsets, groups, word * WORD + _place_of(value, rank))


def kept(
    found: Entries, values: Float[Array, " N"], keep: Bool[Array, " N"], size: int
) -> tuple[Entries, Float[Array, " n"]]:
    """Returns the entries that are kept and their values, in `size` slots, which must be enough."""
    held = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(keep.astype(jnp.int32))])
    slot = jnp.where(keep, held[:-1], size)

    def compact(a):
        return jnp.zeros(size, a.dtype).at[slot].set(a, mode="drop", unique_indices=False)

    entries = Entries(held[found.offsets], compact(found.groups), compact(found.indices))
    return entries, compact(values)


def by_index(found: Entries, indices: int) -> tuple[Int32[Array, " _"], Int32[Array, " N"]]:
    """Orders entries by index, and within one by group.

    Args:
        found: Entries by group.
        indices: How many indices there are.

    Returns:
        Where each index's slots start, [indices + 1], and the slot of each entry; N for none.
    """
    shape, count = (found.offsets.size - 1, indices), found.offsets[-1]
    columns = pack_places(found.indices, found.groups, count, shape).T
    bits = lax.population_count(columns).astype(jnp.int32)
    before = jnp.cumsum(bits, axis=1) - bits
    totals = jnp.cumsum(before[:, -1] + bits[:, -1])
    offsets = jnp.concatenate([jnp.zeros(1, jnp.int32), totals])
    at = found.indices, found.groups // WORD
    lower = columns[at] & _low_bits(found.groups % WORD)
    slots = offsets[found.indices] + before[at] + lax.population_count(lower).astype(jnp.int32)
    valid = jnp.arange(slots.size, dtype=jnp.int32) < count
    return offsets, jnp.where(valid, slots, slots.size)


def first_rows(words: int, rows: Int32[Array, ""]) -> UInt32[Array, " W"]:
    """Returns a column of a map that has the first `rows` rows."""
    start = jnp.arange(words, dtype=jnp.int32) * WORD
    inside = jnp.clip(rows - start, 0, WORD)
    return jnp.where(inside == WORD, ~jnp.uint32(0), _low_bits(inside % WORD))


def _low_bits(count: Int32[Array, "*s"]) -> UInt32[Array, "*s"]:
    """Returns words of which the `count` lowest bits are set, fewer than 32."""
    return (jnp.uint32(1) << count.astype(jnp.uint32)) - 1


def _word_of(held: Int32[Array, "G W"], groups, rank) -> Int32[Array, " N"]:
    """Returns the word that the group's `rank`-th place is in, by bisection."""
    words = held.shape[1]
    rounds = (words - 1).bit_length()

    # A loop, though short: unrolled, TPU compilers take three times as long for a whole list.
    def halve(i, word):
        last = jnp.minimum(word + (1 << (rounds - 1 - i)), words) - 1
        return jnp.where(held[groups, last] <= rank, last + 1, word)

    return jnp.minimum(lax.fori_loop(0, rounds, halve, jnp.zeros_like(rank)), words - 1)


def _place_of(word: UInt32[Array, " N"], rank: Int32[Array, " N"]) -> Int32[Array, " N"]:
    """Returns which bit is the `rank`-th that is set, by halving the word."""
    place = jnp.zeros_like(rank)
    for half in (16, 8, 4, 2, 1):
        low = word & jnp.uint32((1 << half) - 1)
        inside = lax.population_count(low).astype(jnp.int32)
        beyond = rank >= inside
        rank = jnp.where(beyond, rank - inside, rank)
        word = jnp.where(beyond, word >> half, low)
        place = jnp.where(beyond, place + half, place)
    return place
