"""Definition of the count of keys that reach pivots, and its path on CPUs."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from ..bisect import pattern
from ..bitmap import pack, places


def reaching(keys: Float[Array, "R L"], pivots: Int32[Array, " P"]) -> Int32[Array, " P"]:
    """Returns how many keys reach each pivot; see `jaxdiff.kernels.reaching`."""
    bits = pattern(keys.astype(jnp.float32))
    # Pivot by pivot, and as bit maps: on 2 CPU cores 15 pivots over 2^22 keys take 18 ms, 46 ms
    # where a pivot's comparisons are summed, and 425 ms where all pivots are compared at once.
    return lax.map(lambda pivot: places(pack(bits >= pivot)), pivots)
