"""Bisection over integers, such as the bit patterns of floats."""

from collections.abc import Callable

import jax
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
    at_once: int = 1,
) -> Int32[Array, "*s"]:
    """Returns the last integer in [low, high) for which something holds.

    Args:
        holds: Tells it of a pivot; true at `low`, and once false, false for all that follow.
        low: First integer, or one for each of several searches at once.
        high: One after the last integer.
        at_once: Pivots of a round. Where a round waits for other devices, fewer rounds are faster:
            15 pivots find a number of 31 bits in 8.
    """
    step = jnp.arange(1, at_once + 1, dtype=jnp.int32)

    def narrow(state):
        low, high = state
        width = (high - low + at_once) // (at_once + 1)
        if at_once == 1:
            reached = (holds(low + width) & (low + width < high)).astype(jnp.int32)
        else:
            pivots = low[None] + step.reshape(-1, *(1,) * low.ndim) * width[None]
            reached = jnp.sum(jax.vmap(holds)(pivots) & (pivots < high[None]), 0, dtype=jnp.int32)
        low = low + reached * width
        return low, jnp.minimum(low + width, high)

    start = (jnp.asarray(low, jnp.int32), jnp.asarray(high, jnp.int32))
    return lax.while_loop(lambda s: jnp.any(s[1] - s[0] > 1), narrow, start)[0]
