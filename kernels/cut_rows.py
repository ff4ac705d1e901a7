"""Where to cut each row's scores so that its n largest remain."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from .bisect import last_that
from .scores import ABOVE, LOWEST, Scores, Share


def cut_rows(
    scores: Scores, allowed: Bool[Array, " L"], n: Int32[Array, ""] | int
) -> tuple[Int32[Array, " R"], Int32[Array, " R"]]:
    """Returns the lowest score of each row's `n` largest positive ones, over all devices.

    Args:
        scores: Scores of this device's latents.
        allowed: Latents to choose from.
        n: Number for each row; all positive ones where there are fewer.

    Returns:
        What `cut` does.
    """
    place = scores.share.first + jnp.arange(allowed.size, dtype=jnp.int32)

    def part(keys):
        return cut(jnp.where(allowed[None, :], keys, 0.0), place[None, :], n, scores.share)

    return scores.by_rows(part)


def cut(
    keys: Float[Array, "R C"], places: Int32[Array, "_ C"], n: Int32[Array, ""] | int, share: Share
) -> tuple[Int32[Array, " R"], Int32[Array, " R"]]:
    """Returns the lowest of each row's `n` largest positive keys, over all devices.

    Args:
        keys: Keys of this device, one or more columns.
        places: Latent of each, counted over all devices; ties go to the lowest.
        n: Number for each row; all positive ones where there are fewer.
        share: This device's share.

    Returns:
        The key's bit pattern, and the last latent that may equal it: the chosen ones are those
        above it, and those equal to it up to that latent.
    """
    rows = len(keys)

    def count(chosen):
        return share.total(jnp.sum(chosen, axis=1, dtype=jnp.int32))

    def reach(pattern):
        return keys >= lax.bitcast_convert_type(pattern, jnp.float32)[:, None]

    lowest = jnp.full(rows, LOWEST, jnp.int32)
    n = jnp.minimum(n, count(reach(lowest)))
    level = last_that(lambda p: count(reach(p)) >= n, lowest, jnp.full(rows, ABOVE, jnp.int32))
    equal = reach(level) & ~reach(level + 1)
    needed = n - count(reach(level + 1))
    last = jnp.max(places)
    last = lax.pmax(last, share.axes) if share.axes else last
    first = last_that(
        lambda q: count(equal & (places <= -q[:, None])) >= needed,
        jnp.full(rows, 0, jnp.int32) - last,
        jnp.full(rows, 1, jnp.int32),
    )
    return level, -first
