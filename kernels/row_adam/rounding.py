"""Rounding to bfloat16 that is right on average, by random bits that depend on the place alone.

Second moments change by 0.1 % in a step, and bfloat16 numbers are 0.4 to 0.8 % apart: rounded to
the nearest, a moment of a row that moves in every step would stay what it is. Here a number goes to
one of its two neighbours, up as often as it is near to the upper one. The bits are a hash of step,
row and column: a resumed run, another order of rows and another mesh round alike. All tables have
the same bits; nothing adds numbers of two of them.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, UInt32


def rounded(
    value: Float[Array, "*s"],
    *,
    step: Int32[Array, "*u"],
    row: Int32[Array, "*t"],
    column: Int32[Array, ""] | int = 0,
) -> Float[Array, "*s"]:
    """Returns float32 numbers that bfloat16 holds, of which the mean over steps is the value.

    Numbers that are not finite stay what they are.

    Args:
        value: Numbers, in float32.
        step: Number of the step [steps].
        row: Row of each; of a shape that broadcasts.
        column: Column of the first; they follow each other along the last axis.
    """
    columns = column + lax.broadcasted_iota(jnp.int32, value.shape, value.ndim - 1)
    noise = noise_of(step, row, columns)
    # What is added to the 16 bits that go carries with the chance of their value over 2^16.
    patterns = lax.bitcast_convert_type(value, jnp.uint32) + (noise >> 16)
    kept = lax.bitcast_convert_type(patterns & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.abs(value) < jnp.inf, kept, value)


def noise_of(
    step: Int32[Array, "*u"], row: Int32[Array, "*t"], column: Int32[Array, "*s"]
) -> UInt32[Array, "*s"]:
    """Returns 32 random bits for each place and step."""
    seed = _mixed(row.astype(jnp.uint32) ^ _mixed(step.astype(jnp.uint32)))
    return _mixed(column.astype(jnp.uint32) ^ seed)


def _mixed(x: Array) -> Array:
    """Returns one-to-one images of which every bit hangs on all bits of x.

    The multipliers are `lowbias32` of https://nullprogram.com/blog/2018/07/31/.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
