"""Where to cut each row's scores so that its n largest remain."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from .bisect import last_that, number, pattern
from .scores import ABOVE, LOWEST, Scores, Share


def cut_rows(
    scores: Scores, allowed: Bool[Array, " L"], n: Int32[Array, ""] | int
) -> tuple[Int32[Array, " R"], Int32[Array, " R"]]:
    """Returns what separates each row's `n` largest positive scores, over all devices.

    Args:
        scores: Scores of this device's latents.
        allowed: Latents to choose from.
        n: Number for each row; all positive ones where there are fewer.

    Returns:
        What `cut` does.
    """
    place = scores.share.first + jnp.arange(allowed.size, dtype=jnp.int32)

    def part(keys):
        return cut(jnp.where(allowed[None, :], keys(), 0.0), place[None, :], n, scores.share)

    return scores.by_rows(part)


def cut(
    keys: Float[Array, "R C"], places: Int32[Array, "_ C"], n: Int32[Array, ""] | int, share: Share
) -> tuple[Int32[Array, " R"], Int32[Array, " R"]]:
    """Returns what separates each row's `n` largest positive keys, over all devices.

    Args:
        keys: Keys of this device, one or more columns.
        places: Latent of each, counted over all devices; ties go to the lowest.
        n: Number for each row; all positive ones where there are fewer.
        share: This device's share.

    Returns:
        A bit pattern, and a latent: chosen are the keys above the pattern, and those equal to it
        up to that latent. Without ties, the pattern is half-way to the next key: the same keys
        are above it when they are summed in another order.
    """

    def count(chosen):
        return share.total(jnp.sum(chosen, axis=1, dtype=jnp.int32))

    def reach(level):
        return keys >= number(level)[:, None]

    def greatest(a):
        return lax.pmax(a, share.axes) if share.axes else a

    lowest = jnp.full(len(keys), LOWEST, jnp.int32)
    n = jnp.minimum(n, count(reach(lowest)))
    highest = jnp.full_like(lowest, ABOVE)
    level = last_that(lambda p: count(reach(p)) >= n, lowest, highest, share.pivots)
    tied = count(reach(level)) > n
    following = greatest(jnp.max(pattern(jnp.where(reach(level), 0.0, keys)), axis=1))
    between = following + (level - following - 1) // 2

    def first_ones():
        equal = reach(level) & ~reach(level + 1)
        needed = n - count(reach(level + 1))
        start = jnp.broadcast_to(-greatest(jnp.max(places)), level.shape)
        end = jnp.ones_like(level)
        return -last_that(lambda q: count(equal & (places <= -q[:, None])) >= needed, start, end)

    last = lax.cond(jnp.any(tied), first_ones, lambda: jnp.full_like(level, -1))
    return jnp.where(tied, level, between), jnp.where(tied, last, -1)
