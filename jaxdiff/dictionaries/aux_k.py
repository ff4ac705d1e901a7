"""AuxK, which revives dead latents: arXiv:2406.04093, appendix A.2."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.config import DictionaryConfig
from jaxdiff.dictionaries.decoding import decode_rows
from jaxdiff.dictionaries.dictionary import Dictionary, _per_model, _top_rows
from jaxdiff.dictionaries.selection import Codes


def aux_k(
    d: Dictionary,
    codes: Codes,
    dead: Bool[Array, " L"],
    error: Float[Array, "B N D"],
    *,
    limit: int,
    dtype: Any,
) -> Float[Array, ""]:
    """Asks dead latents to explain the error: squared error / error's energy about its mean.

    Args:
        d: The dictionary.
        codes: Latents of the batch.
        dead: Which latents are dead.
        error: Error of the reconstruction; a constant of this term.
        limit: Dead latents that may be used [latents per token].
        dtype: Dtype of the matrix products.
    """
    count = jnp.sum(dead, dtype=jnp.int32)

    def revive():
        fixed = lax.stop_gradient(jnp.where(dead, codes.keys, 0.0))
        n = jnp.minimum(count, limit)
        keep = lax.cond(count <= limit, lambda: fixed > 0, lambda: _top_rows(fixed, n))
        f = jnp.where(keep, _per_model(d, codes.f), 0.0)
        return unexplained(error, decode_rows(d.W_dec, f, dtype=dtype))

    return lax.cond(count > 0, revive, lambda: jnp.zeros(()))


def unexplained(error: Float[Array, "B N D"], guess: Float[Array, "B N D"]) -> Float[Array, ""]:
    """Returns the square of what the guess leaves of the error / its energy about its mean.

    It is 0 where there is no energy.
    """
    energy = jnp.sum(jnp.square(error - jnp.mean(error, axis=0, keepdims=True)))
    missed = jnp.sum(jnp.square(error - guess))
    return jnp.where(energy > 0, missed / jnp.where(energy > 0, energy, 1.0), 0.0)


def dead_latents(
    fired: Bool[Array, " L"], idle: Int[Array, " L"], tokens: int, config: DictionaryConfig
) -> Bool[Array, " L"]:
    """Returns which latents have not fired for `dead_after` tokens, this batch included."""
    return ~fired & (idle + tokens >= config.dead_after)


def most_used(config: DictionaryConfig, width: int) -> int:
    """Returns how many dead latents AuxK may use [latents per token]."""
    return config.aux_k or max(width // 2, 1)
