"""What a dictionary is trained to minimise: reconstruction, sparsity, and reviving dead latents."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.config import DictionaryConfig
from jaxdiff.dictionaries.dictionary import (
    Dictionary,
    _per_model,
    _safe_sqrt,
    _top_rows,
    code_norms,
    decode,
    pre_activations,
    ranking_keys,
)
from jaxdiff.kernels.largest import largest  # pyright: ignore[reportMissingImports]


class Parts(NamedTuple):
    """Terms of the loss and what the forward pass saw; scalars unless a shape is given.

    Attributes:
        loss: What is minimised.
        reconstruction: Reconstruction term.
        sparsity: Sum over latents of value times code norm, mean over rows, not weighted.
        aux: AuxK term, not weighted.
        l0: Active latents per row (mean over models when decoupled).
        fired: True for latents that were active in any row, [L].
        residual: Sum of squared errors by model, [M].
        total: Sum of squares about the batch mean by model, [M].
    """

    loss: Float[Array, ""]
    reconstruction: Float[Array, ""]
    sparsity: Float[Array, ""]
    aux: Float[Array, ""]
    l0: Float[Array, ""]
    fired: Bool[Array, " L"]
    residual: Float[Array, " M"]
    total: Float[Array, " M"]


def loss(
    d: Dictionary,
    x: Float[Array, "B M D"],
    *,
    config: DictionaryConfig,
    k: Float[Array, ""],
    l1: Float[Array, ""],
    idle: Int[Array, " L"],
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, ""], Parts]:
    """Returns the training loss of a batch and its parts.

    relu: reconstruction + l1 * sum_j f_j N_j. topk and batch_topk: reconstruction + aux * L_aux.
    Reference: arXiv:2504.02922, section 2 and appendix.

    Args:
        d: The dictionary.
        x: Normalised activations.
        config: Settings of the dictionary.
        k: Active latents per token to keep [latents per token].
        l1: Weight of the sparsity term (relu).
        idle: Tokens since each latent was last active, before this batch [tokens].
        dtype: Dtype of the matrix products.

    Returns:
        The loss and its parts.
    """
    f, keys, keep = train_codes(d, x, k=k, dtype=dtype)
    active = jnp.where(keep, _per_model(d, f), 0.0)
    error = x - decode(d, active, dtype=dtype)
    reconstruction = reconstruction_loss(error, squared=config.loss == "mse")
    sparsity = jnp.sum(jnp.where(keep, keys, 0.0)) / x.shape[0]
    fired = jnp.any(keep, axis=tuple(range(keep.ndim - 1)))
    if d.activation == "relu":
        aux = jnp.zeros(())
        value = reconstruction + l1 * sparsity
    elif config.aux == 0:
        aux = jnp.zeros(())
        value = reconstruction
    else:
        dead = ~fired & (idle + x.shape[0] >= config.dead_after)
        limit = config.aux_k or max(x.shape[-1] // 2, 1)
        aux = _aux_loss(d, f, keys, dead, lax.stop_gradient(error), limit, dtype)
        value = reconstruction + config.aux * aux
    models = keep.shape[1] if keep.ndim == 3 else 1
    l0 = jnp.sum(keep, dtype=jnp.int32).astype(jnp.float32) / (x.shape[0] * models)
    residual = jnp.sum(jnp.square(error), axis=(0, 2))
    total = jnp.sum(jnp.square(x - jnp.mean(x, axis=0, keepdims=True)), axis=(0, 2))
    return value, Parts(value, reconstruction, sparsity, aux, l0, fired, residual, total)


def train_codes(
    d: Dictionary, x: Float[Array, "B M D"], *, k: Float[Array, ""], dtype: Any = jnp.float32
) -> tuple[Float[Array, "B L"], Float[Array, "B *ML"], Bool[Array, "B *ML"]]:
    """Returns relu(pre), the ranking keys, and which latents are kept in this batch.

    batch_topk keeps the round(k * B) largest keys of the whole batch (for each model when
    decoupled), topk the round(k) largest of each row, relu all positive ones.
    """
    f = jax.nn.relu(pre_activations(d, x, dtype=dtype))
    keys = ranking_keys(f, code_norms(d))
    # Selection is a constant of differentiation; keys are float32 whatever the products are.
    fixed = lax.stop_gradient(keys)
    if d.activation == "relu":
        return f, keys, _per_model(d, f) > 0
    if d.activation == "topk":
        return f, keys, _top_rows(fixed, jnp.round(k).astype(jnp.int32))
    if d.activation != "batch_topk":
        raise ValueError(f"{d.activation} dictionaries cannot be trained")
    budget = jnp.round(k * x.shape[0]).astype(jnp.int32)
    if keys.ndim == 2:
        return f, keys, largest(fixed, budget)
    models = [largest(fixed[:, m], budget) for m in range(keys.shape[1])]
    return f, keys, jnp.stack(models, axis=1)


def reconstruction_loss(error: Float[Array, "B M D"], *, squared: bool) -> Float[Array, ""]:
    """Returns the mean over rows and models of the error's norm, or of its square.

    The norm's gradient at 0 is taken as 0.
    """
    squares = jnp.sum(jnp.square(error), axis=-1)
    return jnp.mean(squares if squared else _safe_sqrt(squares))


def _aux_loss(d, f, keys, dead, error, limit, dtype) -> Float[Array, ""]:
    """Asks dead latents to explain the error: squared error / error's energy about its mean."""
    count = jnp.sum(dead, dtype=jnp.int32)
    energy = jnp.sum(jnp.square(error - jnp.mean(error, axis=0, keepdims=True)))

    def revive():
        fixed = lax.stop_gradient(jnp.where(dead, keys, 0.0))
        n = jnp.minimum(count, limit)
        keep = lax.cond(count <= limit, lambda: fixed > 0, lambda: _top_rows(fixed, n))
        guess = decode(d, jnp.where(keep, _per_model(d, f), 0.0), bias=False, dtype=dtype)
        missed = jnp.sum(jnp.square(error - guess))
        return jnp.where(energy > 0, missed / jnp.where(energy > 0, energy, 1.0), 0.0)

    return lax.cond(count > 0, revive, lambda: jnp.zeros(()))
