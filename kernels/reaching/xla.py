"""Definition of the count of keys that reach pivots, and its path on CPUs."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32


def reaching(keys: Float[Array, "R L"], pivots: Int32[Array, " P"]) -> Int32[Array, " P"]:
    """Returns how many keys reach each pivot; see `jaxdiff.kernels.reaching`."""
    keys = keys.astype(jnp.float32)
    bits = lax.bitcast_convert_type(jnp.where(keys > 0, keys, 0.0), jnp.int32)
    return jnp.sum(bits[None] >= pivots[:, None, None], axis=(1, 2), dtype=jnp.int32)
