"""Exact selection of the n largest of many nonnegative keys, without sorting.

The bit pattern of a nonnegative float32, read as an integer, has the order of the floats. So the
n-th largest key is found by bisection on the pattern: each round counts the keys that reach a
pivot. Counts are integers, hence the result is the same on every mesh that splits the keys, and
what crosses devices is a count.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .bisect import pattern

# Bit pattern just above that of +inf, the largest key there can be.
_ABOVE_INF = 0x7F800001


def largest(keys: Float[Array, "R L"], n: Int[Array, ""]) -> Bool[Array, "R L"]:
    """Marks the `n` largest positive keys of a matrix; ties go to the lowest flat index.

    Takes up to 31 counts, and stops as soon as a pivot cuts off exactly `n` keys. Only if several
    keys equal the n-th largest are they told apart by index.

    Args:
        keys: Ranking keys; zeros, negative values and NaN are never selected.
        n: Number of keys to select; all positive ones when there are fewer.

    Returns:
        True where the key is selected.

    Raises:
        ValueError: If there are 2^31 keys or more, which 32-bit counts cannot hold.
    """
    return _select(keys, n, axes=(0, 1))


def largest_per_row(keys: Float[Array, "R L"], n: Int[Array, ""]) -> Bool[Array, "R L"]:
    """Marks the `n` largest positive keys of every row, with the rules of `largest`."""
    return _select(keys, n, axes=(1,))


def _select(keys, n, axes: tuple[int, ...]) -> Bool[Array, "R L"]:
    if keys.size >= 2**31:
        raise ValueError(f"{keys.shape} has {keys.size} keys, selection counts to 2^31 - 1")

    def count(chosen: Bool[Array, "R L"]) -> Int[Array, "G 1"]:
        return jnp.sum(chosen, axis=axes, keepdims=True, dtype=jnp.int32)

    bits = pattern(keys.astype(jnp.float32))
    positive = count(bits > 0)
    n = jnp.minimum(n.astype(jnp.int32), positive)
    # Pattern 1 is the smallest positive float.
    low, reached = _bisect(lambda pivot: count(bits >= pivot), 1, _ABOVE_INF, positive, n)
    return (n > 0) & lax.cond(
        jnp.all((reached == n) | (n == 0)),
        lambda: bits >= low,
        lambda: (bits > low) | _first((bits == low), n - count(bits > low), count, axes),
    )


def _first(equal, n, count: Callable, axes: tuple[int, ...]) -> Bool[Array, "R L"]:
    """Marks the first `n` True entries in flat order."""
    rows, latents = equal.shape
    index = lax.broadcasted_iota(jnp.int32, equal.shape, 1)
    if 0 in axes:
        index = index + latents * lax.broadcasted_iota(jnp.int32, equal.shape, 0)
    # Counted from the end, so that more entries are reached as the pivot falls, as above.
    last = rows * latents - 1
    pivot, _ = _bisect(
        lambda pivot: count(equal & (last - index >= pivot)), 0, last + 1, count(equal), n
    )
    return equal & (last - index >= pivot)


def _bisect(count: Callable, low: int, high: int, reached, n):
    """Searches the largest pivot in [low, high) that at least `n` entries reach.

    Args:
        count: Number of entries that reach a pivot, for each group; falls as the pivot rises.
        low: Pivot that at least `n` entries reach.
        high: Pivot that none reaches.
        reached: `count(low)`.
        n: Number wanted, for each group.

    Returns:
        The pivot, or a lower one that exactly `n` entries reach, and how many reach it.
    """

    def unsettled(state):
        low, high, reached = state
        return jnp.any((reached != n) & (high - low > 1))

    def halve(state):
        low, high, reached = state
        middle = low + (high - low) // 2
        found = count(middle)
        enough = found >= n
        return (
            jnp.where(enough, middle, low),
            jnp.where(enough, high, middle),
            jnp.where(enough, found, reached),
        )

    start = (jnp.full_like(n, low), jnp.full_like(n, high), reached)
    low_, _, reached = lax.while_loop(unsettled, halve, start)
    return low_, reached
