"""Where to cut each row's scores so that its n largest remain."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32

from .bisect import last_that
from .select import ABOVE, LOWEST, Scores


def cut_rows(
    scores: Scores, allowed: Bool[Array, " L"], n: Int32[Array, ""] | int
) -> tuple[Int32[Array, " R"], Int32[Array, " R"]]:
    """Returns the lowest score of each row's `n` largest positive ones, over all devices.

    Args:
        scores: Scores of this device's latents.
        allowed: Latents to choose from.
        n: Number for each row; all positive ones where there are fewer.

    Returns:
        The score's bit pattern, and the last latent (counted over all devices) that may equal it:
        the chosen ones are those above it, and those equal to it up to that latent.
    """
    values = jnp.where(allowed[None, :], scores.all(), 0.0)
    place = scores.first + jnp.arange(allowed.size, dtype=jnp.int32)

    def count(chosen):
        return scores.total(jnp.sum(chosen, axis=1, dtype=jnp.int32))

    def reach(pattern):
        return values >= lax.bitcast_convert_type(pattern, jnp.float32)[:, None]

    rows = values.shape[0]
    lowest = jnp.full(rows, LOWEST, jnp.int32)
    n = jnp.minimum(n, count(reach(lowest)))
    cut = last_that(lambda p: count(reach(p)) >= n, lowest, jnp.full(rows, ABOVE, jnp.int32))
    equal = reach(cut) & ~reach(cut + 1)
    needed = n - count(reach(cut + 1))
    latents = scores.total(jnp.int32(allowed.size))
    first = last_that(
        lambda q: count(equal & (place[None, :] <= -q[:, None])) >= needed,
        jnp.full(rows, 1, jnp.int32) - latents,
        jnp.full(rows, 1, jnp.int32),
    )
    return cut, -first
