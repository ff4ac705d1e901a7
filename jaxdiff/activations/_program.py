"""The compiled program of a harvest: all models on one batch, up to the tapped site."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.activations.pair import SEPARATOR
from jaxdiff.models import LM, run


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Observed:
    """What the models computed on a batch; moments are those of the used tokens of each row.

    Attributes:
        x: Activations in the storage dtype.
        norm: Euclidean norms of `x`.
        finite: False where `x` has a NaN or an infinity.
        mask: True at tokens that may be used.
        count: Used tokens [tokens].
        mean: Their mean.
        m2: Sum over them and over coordinates of `(x - mean)^2`.
    """

    x: Float[Array, "B T M D"]
    norm: Float[Array, "B T M"]
    finite: Bool[Array, "B T M"]
    mask: Bool[Array, "B T"]
    count: Float[Array, " B"]
    mean: Float[Array, "B M D"]
    m2: Float[Array, "B M"]


@partial(jax.jit, static_argnames=("site", "dtype", "rows"))
def observe(
    models: tuple[LM, ...],
    tokens: Int[Array, "N B T"],
    sequences: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    first: Int[Array, ""],
    limit: Float[Array, " M"],
    *,
    site: str,
    dtype: str,
    rows: NamedSharding | None,
) -> Observed:
    """Runs all models in one program; nothing after the site is computed.

    Args:
        models: The models.
        tokens: What each model reads.
        sequences: Document of each token; -1 is padding.
        positions: Position in the document [tokens].
        first: Tokens at earlier positions are masked [tokens].
        limit: Tokens whose norm is above this in any source are masked.
        site: Canonical names of the sites.
        dtype: Dtype of the results.
        rows: Sharding of the results over B; None on one device.

    Returns:
        Activations with masks and moments. Everything is measured on the values as returned.
    """
    names = tuple(site.split(SEPARATOR))
    taps = [
        run(lm, t, names, sequences=sequences, positions=positions, logits=False)[1]
        for lm, t in zip(models, tokens, strict=True)
    ]
    x = jnp.stack([tap[name].astype(dtype) for name in names for tap in taps], axis=2)
    wide = x.astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(jnp.square(wide), axis=-1))
    usable = (sequences >= 0) & (positions >= first)
    mask = usable & jnp.all(norm <= limit[None, None, :], axis=-1)

    # Two passes over the row: float32 holds the spread around the mean, not around zero.
    count = jnp.sum(mask, axis=1).astype(jnp.float32)
    kept = jnp.where(mask[:, :, None, None], wide, 0.0)
    mean = jnp.sum(kept, axis=1) / jnp.maximum(count, 1.0)[:, None, None]
    spread = jnp.where(mask[:, :, None, None], wide - mean[:, None], 0.0)
    m2 = jnp.sum(jnp.sum(jnp.square(spread), axis=-1), axis=1)

    finite = jnp.all(jnp.isfinite(x), axis=-1)
    out = Observed(x, norm, finite, mask, count, mean, m2)
    return out if rows is None else jax.lax.with_sharding_constraint(out, rows)
