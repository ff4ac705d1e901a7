"""Between a dictionary and the arrays that training moves: ties, blocks of zeros, thresholds."""

import copy
import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdiff.config import DictionaryConfig
from jaxdiff.dictionaries.dictionary import Dictionary


def release(d: Dictionary, config: DictionaryConfig) -> Dictionary:
    """Returns what training moves, in the places of a dictionary; `constrain` inverts it.

    * tied: W_enc is not there, since W_dec is.
    * jumprelu: `threshold` holds its logarithm, so that thresholds stay positive.
    * gated: `threshold` is [L, 2], the gate's bias and the logarithm of the magnitudes' scale.

    Args:
        d: A dictionary with these settings.
        config: Settings of the dictionary.
    """
    free = copy.copy(d)
    # Not through __init__, which would ask for an array.
    if config.tied:
        object.__setattr__(free, "W_enc", None)
    if config.activation == "jumprelu":
        object.__setattr__(free, "threshold", jnp.log(d.threshold))
    if config.activation == "gated":
        gate = jnp.stack([d.b_enc - d.threshold, jnp.zeros_like(d.b_enc)], axis=1)
        object.__setattr__(free, "threshold", gate)
    return free


def constrain(free: Dictionary, config: DictionaryConfig) -> Dictionary:
    """Returns the dictionary that these arrays stand for; it is differentiable.

    * shared: the first latents have the mean of their decoder rows in every model.
    * dedicated: the last latents neither read nor write the models that they do not belong to.
    * tied: the encoder is the transposed decoder.
    * jumprelu: thresholds are exponentials.
    * gated: a latent is relu(e^r a + b) where a + g > 0, with a = x W_enc, bias b, gate's bias g
      and log-scale r; that is relu(pre) where pre > b - e^r g, for pre = x (e^r W_enc) + b, hence a
      jumprelu latent. Reference: arXiv:2404.16014, section 3.

    Args:
        free: What `release` returned, and training moved.
        config: Settings of the dictionary.
    """
    W_enc, W_dec, threshold = free.W_enc, free.W_dec, free.threshold
    if config.shared:
        first = jnp.arange(len(W_dec))[:, None, None] < config.shared
        W_dec = jnp.where(first, jnp.mean(W_dec, axis=1, keepdims=True), W_dec)
    if config.dedicated:
        own = jnp.asarray(belongs(config))
        W_dec = jnp.where(own[:, :, None], W_dec, 0.0)
        W_enc = None if W_enc is None else jnp.where(own.T[:, None, :], W_enc, 0.0)
    if W_enc is None:  # Tied.
        W_enc = jnp.transpose(W_dec, (1, 2, 0))
    if config.activation == "jumprelu":
        threshold = jnp.exp(threshold)
    if config.activation == "gated":
        scale = gate_scale(free)
        W_enc = W_enc * scale[None, None, :]
        threshold = free.b_enc - scale * threshold[:, 0]
    return dataclasses.replace(free, W_enc=W_enc, W_dec=W_dec, threshold=threshold)


def gate_scale(free: Dictionary) -> Float[Array, " L"]:
    """Returns by how much the magnitudes of a gated dictionary exceed its gates' products, e^r."""
    return jnp.exp(free.threshold[:, 1])


def belongs(config: DictionaryConfig) -> Bool[np.ndarray, "L M"]:
    """Returns which models each latent reads and writes, where latents are dedicated."""
    models = len(config.dedicated)
    common = np.ones((config.latents - sum(config.dedicated), models), bool)
    own = np.repeat(np.eye(models, dtype=bool), config.dedicated, axis=0)
    return np.concatenate([common, own])
