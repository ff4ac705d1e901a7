"""Sums that keep twice the digits of float32.

A pass may add tens of thousands of batches, and a plain float32 running sum then loses the last
three or four digits. Float64 is not there on a TPU and is off by default in JAX, so the rounding
error of each addition is kept in a second float32 array (Knuth's two-sum).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sum:
    """A running sum; its value is `high + low`.

    Attributes:
        high: The sum, rounded to float32.
        low: What rounding has left out so far.
    """

    high: Float[Array, "*shape"]
    low: Float[Array, "*shape"]


def zero(*shape: int) -> Sum:
    """Returns an empty sum of the given shape."""
    return Sum(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def add(total: Sum, x: Float[Array, "*shape"]) -> Sum:
    """Adds one float32 array of the sum's shape."""
    high = total.high + x
    back = high - total.high
    error = (total.high - (high - back)) + (x - back)
    return Sum(high, total.low + error)


def merge(a: Sum, b: Sum) -> Sum:
    """Adds two sums."""
    both = add(a, b.high)
    return Sum(both.high, both.low + b.low)


def value(total: Sum) -> Float[np.ndarray, "*shape"]:
    """Returns the sum in float64, on the host."""
    return np.asarray(np.asarray(total.high, np.float64) + np.asarray(total.low, np.float64))
