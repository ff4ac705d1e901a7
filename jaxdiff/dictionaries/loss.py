"""What a dictionary is trained to minimise: reconstruction, sparsity, and reviving dead latents."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.config import DictionaryConfig
from jaxdiff.dictionaries.aux_k import aux_k, dead_latents, most_used
from jaxdiff.dictionaries.constraints import constrain, gate_scale
from jaxdiff.dictionaries.decoding import decode_rows, offset
from jaxdiff.dictionaries.dictionary import (
    Dictionary,
    _per_model,
    _safe_sqrt,
    code_norms,
    read_by,
    written_by,
)
from jaxdiff.dictionaries.penalties import below_threshold, jump, sparsity
from jaxdiff.dictionaries.selection import Codes, train_codes


class Parts(NamedTuple):
    """Terms of the loss and what the forward pass saw; scalars unless a shape is given.

    Attributes:
        loss: What is minimised.
        reconstruction: Reconstruction term.
        sparsity: Sum over latents of value times code norm (jumprelu and gated: their own penalty),
            mean over rows, not weighted.
        aux: AuxK term (jumprelu: penalty below the threshold; gated: the gates' reconstruction),
            not weighted.
        l0: Active latents per row (mean over models when decoupled).
        fired: True for latents that were active in any row, [L].
        residual: Sum of squared errors by model, [N].
        total: Sum of squares about the batch mean by model, [N].
    """

    loss: Float[Array, ""]
    reconstruction: Float[Array, ""]
    sparsity: Float[Array, ""]
    aux: Float[Array, ""]
    l0: Float[Array, ""]
    fired: Bool[Array, " L"]
    residual: Float[Array, " N"]
    total: Float[Array, " N"]


def loss(
    d: Dictionary,
    x: Float[Array, "B S D"],
    *,
    config: DictionaryConfig,
    k: Float[Array, ""],
    l1: Float[Array, ""],
    idle: Int[Array, " L"],
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, ""], Parts]:
    """Returns the training loss of a batch and its parts.

    The reconstruction term, summed over `config.prefixes` (Matryoshka, arXiv:2503.17547), and:

    * relu: l1 * sum_j f_j N_j. Reference, also for topk: arXiv:2504.02922, section 2 and appendix.
    * topk, batch_topk, group_max: aux * L_aux.
    * jumprelu: l1 * penalty + pre_penalty * sum_j relu(t_j - pre_j) N_j; see `penalties.sparsity`.
    * gated: l1 * sum_j g_j N_j, and the reconstruction from g, with decoder and N held constant,
      where g is the positive part of the gates (arXiv:2404.16014, section 3).

    Args:
        d: What training moves; see `constraints.release`.
        x: Normalised activations.
        config: Settings of the dictionary.
        k: Active latents per token to keep [latents per token].
        l1: Weight of the sparsity term.
        idle: Tokens since each latent was last active, before this batch [tokens].
        dtype: Dtype of the matrix products.

    Returns:
        The loss and its parts.
    """
    free, d = d, constrain(d, config)
    read, target = read_by(d, x), written_by(d, x)
    codes = train_codes(d, read, k=k, dtype=dtype)
    active = jnp.where(codes.keep, _per_model(d, codes.f), 0.0)
    if config.activation == "jumprelu":
        active = jump(codes, d.threshold, config.bandwidth)
    objective = functools.partial(
        reconstruction_loss, squared=config.loss == "mse", cross=config.cross
    )
    errors = _errors(d, active, read, target, config.prefixes, dtype)
    reconstruction, error = objective(errors[0]), errors[-1]
    for nested in errors[1:]:
        reconstruction = reconstruction + objective(nested)
    fired = jnp.any(codes.keep, axis=tuple(range(codes.keep.ndim - 1)))
    norms = code_norms(d)
    if config.activation == "gated":
        gates = jax.nn.relu(codes.pre - d.threshold[None]) / gate_scale(free)[None]
        # Their gradient would shrink decoders, which the held decoder below could never undo.
        sparse = jnp.sum(gates * lax.stop_gradient(norms)[None]) / len(x)
        (guess,) = _errors(_held(d), gates, read, target, (), dtype)
        aux, weight = objective(guess), 1.0
    else:
        sparse = sparsity(codes, active, d.threshold, norms, config)
        aux, weight = _revive(d, codes, error, fired, norms, idle, config, dtype)
    value = reconstruction + l1 * sparse if config.penalised else reconstruction
    value = value + weight * aux if weight else value
    models = codes.keep.shape[1] if codes.keep.ndim == 3 else 1
    l0 = jnp.sum(codes.keep, dtype=jnp.int32).astype(jnp.float32) / (len(x) * models)
    left = squares_by_model(error, target)
    return value, Parts(value, reconstruction, sparse, aux, l0, fired, *left)


def squares_by_model(
    error: Float[Array, "B N D"], target: Float[Array, "B N D"]
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Returns the squared error of each model, and the square of the target about its mean."""
    residual = jnp.sum(jnp.square(error), axis=(0, 2))
    about = target - jnp.mean(target, axis=0, keepdims=True)
    return residual, jnp.sum(jnp.square(about), axis=(0, 2))


def reconstruction_loss(
    error: Float[Array, "B N D"], *, squared: bool, cross: float = 0.0
) -> Float[Array, ""]:
    """Returns the mean over rows and models of the error's norm, or of its square.

    The norm's gradient at 0 is taken as 0. With a cross term c, models' errors e_m are compared:
    mean over rows of (sum_m |e_m|^2 + 2 c / (N - 1) sum_{m<n} <e_m, e_n>) / N. With c = -1 and two
    models that is the error of their difference alone.
    """
    squares = jnp.sum(jnp.square(error), axis=-1)
    value = jnp.mean(squares if squared else _safe_sqrt(squares))
    if not cross:
        return value
    models = error.shape[1]
    pairs = jnp.sum(jnp.square(jnp.sum(error, axis=1)), axis=-1) - jnp.sum(squares, axis=1)
    return value + cross / (models * (models - 1)) * jnp.mean(pairs)


def _errors(d: Dictionary, active, read, target, prefixes, dtype) -> list[Array]:
    """Returns the error of each nested dictionary, that of the whole one last."""
    fixed, guess = offset(d, read, dtype=dtype), jnp.zeros_like(target)
    ends = (*prefixes, d.W_dec.shape[0])
    errors = []
    for start, end in zip((0, *prefixes), ends, strict=True):
        guess = guess + decode_rows(d.W_dec[start:end], active[..., start:end], dtype=dtype)
        errors.append(target - (guess + fixed))
    return errors


def _held(d: Dictionary) -> Dictionary:
    """Returns the dictionary with its decoder, biases and skip as constants of differentiation."""
    return dataclasses.replace(
        d, **{name: lax.stop_gradient(getattr(d, name)) for name in ("W_dec", "b_dec", "W_skip")}
    )


def _revive(d, codes: Codes, error, fired, norms, idle, config, dtype) -> tuple[Array, float]:
    """Returns the term that revives dead latents, and its weight."""
    if config.activation == "jumprelu" and config.pre_penalty:
        return below_threshold(codes, d.threshold, norms), config.pre_penalty
    if config.penalised or config.aux == 0:
        return jnp.zeros(()), 0.0
    dead = dead_latents(fired, idle, len(error), config)
    limit = most_used(config, error.shape[-1])
    return aux_k(d, codes, dead, lax.stop_gradient(error), limit=limit, dtype=dtype), config.aux
