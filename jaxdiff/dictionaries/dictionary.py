"""The dictionary: parameters, encode, decode, and folding a normalisation into them.

A crosscoder reads M models at once; a sparse autoencoder is the case M = 1.
Reference: arXiv:2504.02922, section 2 and appendix; jaxdiff keeps its own axis order.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdiff.config import DictionaryConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.kernels.largest import largest_per_row  # pyright: ignore[reportMissingImports]

Activation = Literal["relu", "topk", "batch_topk", "jumprelu"]
CodeNorm = Literal["crosscoder", "sae", "mixed", "none", "decoupled"]


@dataclass(frozen=True)
class Dictionary:
    """Parameters of a dictionary over M models of width D with L latents.

    Attributes:
        W_enc: Encoder; the models' products are summed before the activation.
        b_enc: Encoder bias.
        W_dec: Decoder rows, one per latent and model; their norms carry meaning.
        b_dec: Decoder bias.
        threshold: What a latent must exceed to be active at inference. batch_topk: its ranking key
            must, [] or, when decoupled, [M]. jumprelu: its value must, [L] or, when decoupled,
            [L, M]. Not used by relu and topk.
        activation: Rule that decides which latents are active.
        k: Active latents per token that the dictionary was trained for [latents per token].
        code_norm: How decoder norms weigh a latent in ranking and penalty.
    """

    W_enc: Float[Array, "M D L"]
    b_enc: Float[Array, " L"]
    W_dec: Float[Array, "L M D"]
    b_dec: Float[Array, "M D"]
    threshold: Float[Array, "*T"]
    activation: Activation = field(metadata={"static": True})
    k: float = field(metadata={"static": True})
    code_norm: CodeNorm = field(metadata={"static": True})

    def __post_init__(self):
        if self.activation not in get_args(Activation):
            raise ValueError(f"activation must be one of {get_args(Activation)}")
        if self.code_norm not in get_args(CodeNorm):
            raise ValueError(f"code_norm must be one of {get_args(CodeNorm)}")


LEAVES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
STATIC = ("activation", "k", "code_norm")


def _flatten(d: Dictionary):
    return [(jax.tree_util.GetAttrKey(name), getattr(d, name)) for name in LEAVES], tuple(
        getattr(d, name) for name in STATIC
    )


def _unflatten(static, leaves) -> Dictionary:
    # Not through __init__: JAX puts shardings, specs and placeholders where arrays belong.
    d = object.__new__(Dictionary)
    for name, value in zip(LEAVES + STATIC, (*leaves, *static), strict=True):
        object.__setattr__(d, name, value)
    return d


jax.tree_util.register_pytree_with_keys(Dictionary, _flatten, _unflatten)


def init(config: DictionaryConfig, shape: tuple[int, int], *, key: PRNGKeyArray) -> Dictionary:
    """Makes a dictionary with random decoder directions and the transposed decoder as encoder.

    Entries are uniform as in Kaiming initialisation, whose bound cancels because each row is then
    scaled to `config.decoder_norm`, model by model. Biases are zero.

    Args:
        config: Settings of the dictionary.
        shape: Number of models and their width, (M, D).
        key: Key of the directions.

    Returns:
        A dictionary whose threshold is 0.
    """
    models, width = shape
    drawn = 1 if config.same_init else models
    rows = jax.random.uniform(key, (config.latents, drawn, width), minval=-1.0, maxval=1.0)
    rows = rows * (config.decoder_norm / jnp.linalg.norm(rows, axis=-1, keepdims=True))
    rows = jnp.broadcast_to(rows, (config.latents, models, width))
    return Dictionary(
        W_enc=jnp.transpose(rows, (1, 2, 0)),
        b_enc=jnp.zeros(config.latents),
        W_dec=rows,
        b_dec=jnp.zeros(shape),
        threshold=jnp.zeros((models,) if config.code_norm == "decoupled" else ()),
        activation=config.activation,
        k=config.k,
        code_norm=config.code_norm,
    )


def decoder_norms(d: Dictionary) -> Float[Array, "L M"]:
    """Returns the L2 norm of each latent's decoder row in each model."""
    squares = jnp.sum(jnp.square(d.W_dec.astype(jnp.float32)), axis=-1)
    return _safe_sqrt(squares)


def code_norms(d: Dictionary) -> Float[Array, " L"] | Float[Array, "L M"]:
    """Returns the weight of each latent in ranking and penalty; see `combined_norms`."""
    return combined_norms(decoder_norms(d), d.code_norm)


def combined_norms(
    norms: Float[Array, "L M"], code_norm: CodeNorm
) -> Float[Array, " L"] | Float[Array, "L M"]:
    """Returns the weight of each latent from its decoder norms n_m in the models.

    crosscoder: sum of n_m; sae: norm of the concatenated rows; mixed: sae + crosscoder / 10;
    none: 1; decoupled: n_m itself, one weight for each model.
    """
    if code_norm == "decoupled":
        return norms
    if code_norm == "none":
        return jnp.ones(norms.shape[0])
    total = jnp.sum(norms, axis=-1)
    if code_norm == "crosscoder":
        return total
    joint = _safe_sqrt(jnp.sum(jnp.square(norms), axis=-1))
    return joint if code_norm == "sae" else joint + 0.1 * total


def pre_activations(
    d: Dictionary, x: Float[Array, "R M D"], *, dtype: Any = jnp.float32
) -> Float[Array, "R L"]:
    """Returns sum_m x^m W_enc^m + b_enc; products in `dtype`, sums in float32."""
    rows = x.shape[0]
    product = jnp.matmul(
        x.reshape(rows, -1).astype(dtype),
        d.W_enc.reshape(-1, d.W_enc.shape[-1]).astype(dtype),
        **accumulation(dtype),
    )
    return product + d.b_enc[None, :]


def ranking_keys(
    f: Float[Array, "R L"], norms: Float[Array, " L"] | Float[Array, "L M"]
) -> Float[Array, "R L"] | Float[Array, "R M L"]:
    """Returns what latents are ranked by: value times code norm, for each model if decoupled."""
    if norms.ndim == 2:
        return f[:, None, :] * norms.T[None, :, :]
    return f * norms[None, :]


def encode(d: Dictionary, x: Float[Array, "R M D"]) -> Float[Array, "R L"] | Float[Array, "R M L"]:
    """Returns the values of the active latents and 0 elsewhere.

    The rule is the one for inference, so that a row's values do not depend on the other rows: a
    batch_topk latent is active when relu(pre) * code_norm exceeds the calibrated threshold. Values
    are not scaled by the norms.

    Args:
        d: The dictionary.
        x: Activations in the space that the dictionary was trained on (or raw ones after `fold`).

    Returns:
        Values; [R, M, L] when the code norm is decoupled.
    """
    f = jax.nn.relu(pre_activations(d, x))
    if d.activation == "jumprelu":
        keys, threshold = _per_model(d, f), d.threshold.T[None]
        return jnp.where(keys > threshold, keys, 0.0)
    if d.activation == "relu":
        return _per_model(d, f)
    keys = ranking_keys(f, code_norms(d))
    if d.activation == "batch_topk":
        keep = keys > (d.threshold[None, :, None] if keys.ndim == 3 else d.threshold)
    else:
        keep = _top_rows(keys, jnp.int32(round(d.k)))
    return jnp.where(keep, _per_model(d, f), 0.0)


def decode(
    d: Dictionary,
    f: Float[Array, "R L"] | Float[Array, "R M L"],
    *,
    bias: bool = True,
    dtype: Any = jnp.float32,
) -> Float[Array, "R M D"]:
    """Returns sum_j f_j d_j^m + b_dec^m; products in `dtype`, sums in float32."""
    latents, models, width = d.W_dec.shape
    if f.ndim == 3:
        out = jnp.einsum(
            "rml,lmd->rmd",
            f.astype(dtype),
            d.W_dec.astype(dtype),
            **accumulation(dtype),
        )
    else:
        out = jnp.matmul(
            f.astype(dtype),
            d.W_dec.reshape(latents, -1).astype(dtype),
            **accumulation(dtype),
        ).reshape(-1, models, width)
    return out + d.b_dec[None] if bias else out


def fold(d: Dictionary, mean: Float[Array, "M D"], scale: Float[Array, " M"]) -> Dictionary:
    """Moves the normalisation x' = (x - mean) * scale into the dictionary.

    The result acts on raw activations: it has the same codes as `d` on normalised ones, and its
    reconstruction is the raw one. Decoder norms change model by model, and with them the ranking
    keys; so batch_topk becomes jumprelu with threshold / code_norm on the values, as it was.

    Args:
        d: Dictionary trained on normalised activations.
        mean: Mean that was subtracted.
        scale: Factor of each model.

    Returns:
        A dictionary for raw activations.

    Raises:
        JaxdiffError: If `d` is a topk dictionary whose ranking the scales would change.
    """
    if d.activation == "topk" and d.code_norm != "none" and len(scale) > 1:
        raise JaxdiffError(
            "a topk crosscoder ranks by decoder norms, which folding changes",
            where="fold",
            fix="normalise the activations and use the dictionary as it is, or use batch_topk",
        )
    W_enc = d.W_enc * scale[:, None, None]
    shift = jnp.einsum("md,mdl->l", mean, W_enc, **accumulation(jnp.float32))
    folded = dataclasses.replace(
        d,
        W_enc=W_enc,
        b_enc=d.b_enc - shift,
        W_dec=d.W_dec / scale[None, :, None],
        b_dec=d.b_dec / scale[:, None] + mean,
    )
    if d.activation != "batch_topk":
        return folded
    norms = code_norms(d)
    # A latent without a decoder has key 0 and is never active: its threshold is infinite.
    tau = d.threshold[None, :] if norms.ndim == 2 else d.threshold
    threshold = jnp.where(norms > 0, tau / jnp.where(norms > 0, norms, 1.0), jnp.inf)
    return dataclasses.replace(folded, activation="jumprelu", threshold=threshold)


def accumulation(dtype: Any) -> dict[str, Any]:
    """Returns how products of a dtype are summed: in float32, of factors that are not rounded."""
    # By default TPUs and recent GPUs round float32 factors to fewer bits.
    precision = "highest" if jnp.dtype(dtype) == jnp.float32 else "default"
    return {"preferred_element_type": jnp.float32, "precision": precision}


def _per_model(d: Dictionary, f: Float[Array, "R L"]) -> Float[Array, "R *ML"]:
    if d.code_norm != "decoupled":
        return f
    return jnp.broadcast_to(f[:, None, :], (f.shape[0], d.W_dec.shape[1], f.shape[1]))


def _top_rows(keys, n):
    rows = largest_per_row(keys.reshape(-1, keys.shape[-1]), n)
    return rows.reshape(keys.shape)


def _safe_sqrt(squares):
    # The gradient of sqrt at 0 is infinite; of this it is 0. NaN stays NaN.
    zero = squares == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))
