"""Scalar products of listed pairs of rows: the gradient of sparse codes."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

# Pairs of a chunk. Measured on 2 CPU cores, D = 512: 1024 takes 0.75 of the time of 256.
_CHUNK = 1024


def gathered_dots(
    left: Float[Array, "R D"],
    rows: Int32[Array, " N"],
    right: Float[Array, "S D"],
    others: Int32[Array, " N"],
    count: Int32[Array, ""],
) -> Float[Array, " N"]:
    """Returns `left[rows[i]] . right[others[i]]` for i < count, and 0 from there on.

    Works in chunks, so that [N, D] is never held.
    """
    size = rows.size
    chunk = min(_CHUNK, size)

    def step(carry):
        at, out = carry
        # Both slices stop short of the end in the same way.
        a, b = (lax.dynamic_slice(i, (at,), (chunk,)) for i in (rows, others))
        dots = jnp.sum(left[a].astype(jnp.float32) * right[b].astype(jnp.float32), axis=1)
        return at + chunk, lax.dynamic_update_slice(out, dots, (at,))

    start = jnp.int32(0), jnp.zeros(size, jnp.float32)
    out = lax.while_loop(lambda carry: carry[0] < count, step, start)[1]
    return jnp.where(jnp.arange(size, dtype=jnp.int32) < count, out, 0.0)
