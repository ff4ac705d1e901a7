"""Exact selection of the n largest of many nonnegative keys, without sorting."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# Bit pattern just above that of +inf, the largest key there can be.
_ABOVE_INF = 0x7F800001


def largest(keys: Float[Array, "R L"], n: Int[Array, ""]) -> Bool[Array, "R L"]:
    """Marks the `n` largest positive keys of a matrix; ties go to the lowest flat index.

    The bit pattern of a nonnegative float32, read as an integer, has the order of the floats. So
    the n-th largest key is found by bisection on the pattern: each round counts the keys at or
    above a pivot, and the search ends as soon as a pivot cuts off exactly `n` of them (at most 31
    rounds). Counts are integers, hence the result is the same on every mesh that splits the keys.
    Only if several keys equal the n-th largest are they told apart by index.

    Args:
        keys: Ranking keys; zeros, negative values and NaN are never selected.
        n: Number of keys to select; all positive ones when there are fewer.

    Returns:
        True where the key is selected.

    Raises:
        ValueError: If there are 2^31 keys or more, which 32-bit counts cannot hold.
    """
    if keys.size >= 2**31:
        raise ValueError(f"{keys.shape} has {keys.size} keys, selection counts to 2^31 - 1")
    bits = _bits(keys)
    n = jnp.minimum(n.astype(jnp.int32), _count(bits, 1))
    pivot, above = _search(bits, n)
    return lax.cond(
        above == n,
        lambda: bits >= pivot,
        lambda: (bits > pivot) | _first_equal(bits, pivot, n),
    ) & (n > 0)


def largest_per_row(keys: Float[Array, "R L"], n: Int[Array, ""]) -> Bool[Array, "R L"]:
    """Marks the `n` largest positive keys of every row, with the rules of `largest`."""
    return jax.vmap(lambda row: largest(row[None], n)[0])(keys)


def _bits(keys: Float[Array, "R L"]) -> Int[Array, "R L"]:
    """Maps positive keys to integers of the same order, and all others to 0."""
    keys = keys.astype(jnp.float32)
    return lax.bitcast_convert_type(jnp.where(keys > 0, keys, 0.0), jnp.int32)


def _count(bits: Int[Array, "R L"], pivot: Int[Array, ""] | int) -> Int[Array, ""]:
    return jnp.sum(bits >= pivot, dtype=jnp.int32)


def _search(bits: Int[Array, "R L"], n: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Returns a pivot that at least `n` keys reach, and how many do.

    That many is `n` itself, unless the n-th largest key occurs again beyond it; then the pivot is
    this key.
    """

    def unsettled(state):
        low, high, above = state
        return (above != n) & (high - low > 1)

    def halve(state):
        low, high, above = state
        middle = low + (high - low) // 2
        count = _count(bits, middle)
        enough = count >= n
        return (
            jnp.where(enough, middle, low),
            jnp.where(enough, high, middle),
            jnp.where(enough, count, above),
        )

    # Pattern 1 is the smallest positive float: `n` is at most the number of keys that reach it.
    start = (jnp.int32(1), jnp.int32(_ABOVE_INF), _count(bits, 1))
    low, _, above = lax.while_loop(unsettled, halve, start)
    return low, above


def _first_equal(bits, pivot, n) -> Bool[Array, "R L"]:
    """Marks, in flat order, as many keys equal to the pivot as are missing from `n`."""
    equal = bits == pivot
    missing = n - _count(bits, pivot + 1)
    per_row = jnp.sum(equal, axis=1, dtype=jnp.int32)
    before = jnp.cumsum(per_row) - per_row
    # Whole rows fit up to the first one in which the missing ones run out; that one is cut.
    cut = jnp.argmax(before + per_row >= missing)
    columns = jnp.cumsum(equal[cut].astype(jnp.int32)) <= missing - before[cut]
    rows = jnp.arange(bits.shape[0])
    return equal & ((rows < cut)[:, None] | ((rows == cut)[:, None] & columns[None, :]))
