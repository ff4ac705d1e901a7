"""A normalisation moved into a dictionary, so that it acts on raw activations."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.dictionaries.dictionary import (
    Dictionary,
    code_norms,
    read_by,
    written_by,
)
from jaxdiff.errors import JaxdiffError
from jaxdiff.kernels.product import accumulation


def fold(d: Dictionary, mean: Float[Array, "S D"], scale: Float[Array, " S"]) -> Dictionary:
    """Moves the normalisation x' = (x - mean) * scale into the dictionary.

    The result acts on raw activations: it has the same codes as `d` on normalised ones, and its
    reconstruction is the raw one. Decoder norms change model by model, and with them the ranking
    keys; so batch_topk becomes jumprelu with threshold / code_norm on the values, as it was.

    Args:
        d: Dictionary trained on normalised activations.
        mean: Mean that was subtracted from each source.
        scale: Factor of each source.

    Returns:
        A dictionary for raw activations.

    Raises:
        JaxdiffError: If `d` is a topk or group_max crosscoder, whose ranking would change.
    """
    ranked = d.activation in ("topk", "group_max") and d.code_norm != "none"
    if ranked and d.W_dec.shape[1] > 1:
        raise JaxdiffError(
            f"a {d.activation} crosscoder ranks by decoder norms, which folding changes",
            where="fold",
            fix="normalise the activations and use the dictionary as it is, or use batch_topk",
        )
    mean_in, mean_out = read_by(d, mean[None])[0], written_by(d, mean[None])[0]
    scales = scale[None, :, None]
    scale_in, scale_out = read_by(d, scales)[0, :, 0], written_by(d, scales)[0, :, 0]
    W_enc = d.W_enc * scale_in[:, None, None]
    shift = jnp.einsum("md,mdl->l", mean_in, W_enc, **accumulation(jnp.float32))
    b_dec, W_skip = d.b_dec, d.W_skip
    if W_skip is not None:
        W_skip = W_skip * scale_in[:, None, None, None]
        b_dec = b_dec - jnp.einsum("md,mdne->ne", mean_in, W_skip, **accumulation(jnp.float32))
        W_skip = W_skip / scale_out[None, None, :, None]
    folded = dataclasses.replace(
        d,
        W_enc=W_enc,
        b_enc=d.b_enc - shift,
        W_dec=d.W_dec / scale_out[None, :, None],
        b_dec=b_dec / scale_out[:, None] + mean_out,
        W_skip=W_skip,
    )
    if d.activation != "batch_topk":
        return folded
    norms = code_norms(d)
    # A latent without a decoder has key 0 and is never active: its threshold is infinite.
    tau = d.threshold[None, :] if norms.ndim == 2 else d.threshold
    threshold = jnp.where(norms > 0, tau / jnp.where(norms > 0, norms, 1.0), jnp.inf)
    return dataclasses.replace(folded, activation="jumprelu", threshold=threshold)
