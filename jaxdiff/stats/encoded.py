"""One batch of activations with everything that a statistic may ask of a dictionary."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff import dictionaries
from jaxdiff.dictionaries import Dictionary
from jaxdiff.types import ActivationBatch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Encoded:
    """Rows as the dictionary sees them; whatever belongs to a masked row is 0.

    Attributes:
        x: Activations in the space in which the dictionary works (normalised).
        reconstruction: What the dictionary makes of them.
        f: Latents, unscaled: what the decoder is multiplied with. A decoupled dictionary has one
            for each model.
        v: Latents times their code norm, the size that ranking and thresholds use; the larger of
            the models' where the dictionary is decoupled.
        mask: True where the row counts.
        roles: `Role` of each row.
        sequences: Document of each row.
        rows: Number of each row in the pass, from 0, masked ones included.
    """

    x: Float[Array, "R M D"]
    reconstruction: Float[Array, "R M D"]
    f: Float[Array, "R *ML"]
    v: Float[Array, "R L"]
    mask: Bool[Array, " R"]
    roles: Int[Array, " R"]
    sequences: Int[Array, " R"]
    rows: Int[Array, " R"]


def encode(
    dictionary: Dictionary,
    batch: ActivationBatch,
    rows: Int[Array, " R"],
    *,
    mean: Float[Array, "M D"],
    scale: Float[Array, " M"],
) -> Encoded:
    """Runs the dictionary on a batch of raw activations.

    Args:
        dictionary: A dictionary of normalised activations.
        batch: Raw activations, any float dtype.
        rows: Number of each row in the pass.
        mean: Mean of each model's activations.
        scale: Factor that brings each model's centred activations to the dictionary's space.

    Returns:
        The batch as the statistics read it, in float32.
    """
    mask = jnp.asarray(batch.mask)
    keep = mask[:, None, None]
    # where, not a product: a masked row may hold an outlier or NaN, and 0 * NaN is NaN.
    raw = jnp.where(keep, jnp.asarray(batch.x).astype(jnp.float32), jnp.float32(0))
    x = jnp.where(keep, (raw - mean[None]) * scale[None, :, None], jnp.float32(0))
    f = dictionaries.encode(dictionary, x).astype(jnp.float32)
    f = jnp.where(mask.reshape(-1, *(1,) * (f.ndim - 1)), f, jnp.float32(0))
    reconstruction = dictionaries.decode(dictionary, f, x).astype(jnp.float32)
    norms = dictionaries.code_norms(dictionary)  # [L], or [L, M] when decoupled
    v = f * norms[None] if f.ndim == 2 else (f * norms.T[None]).max(axis=1)
    return Encoded(
        x=x,
        reconstruction=jnp.where(keep, reconstruction, jnp.float32(0)),
        f=f,
        v=v,
        mask=mask,
        roles=jnp.asarray(batch.roles),
        sequences=jnp.asarray(batch.sequences),
        rows=rows,
    )
