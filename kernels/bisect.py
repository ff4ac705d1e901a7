"""Bisection over integers, such as the bit patterns of floats."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32


def pattern(keys: Float[Array, "*s"]) -> Int32[Array, "*s"]:
    """Returns bit patterns, which have the order of positive float32 keys; others count as 0."""
    return lax.bitcast_convert_type(jnp.where(keys > 0, keys, 0.0), jnp.int32)


def number(pattern: Int32[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns the float32 that has a bit pattern."""
    return lax.bitcast_convert_type(pattern, jnp.float32)


def last_that(
    holds: Callable[[Int32[Array, "*s"]], Bool[Array, "*s"]],
    low: int | Int32[Array, "*s"],
    high: int | Int32[Array, "*s"],
) -> Int32[Array, "*s"]:
    """Returns the last integer in [low, high) for which something holds.

    Args:
        holds: Tells it of a pivot; true at `low`, and once false, false for all that follow.
        low: First integer, or one for each of several searches at once.
        high: One after the last integer.
    """

    def halve(state):
        low, high = state
        middle = low + (high - low) // 2
        yes = holds(middle)
        return jnp.where(yes, middle, low), jnp.where(yes, high, middle)

    start = (jnp.asarray(low, jnp.int32), jnp.asarray(high, jnp.int32))
    return lax.while_loop(lambda s: jnp.any(s[1] - s[0] > 1), halve, start)[0]
