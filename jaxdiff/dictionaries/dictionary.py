"""The dictionary: parameters, encode and decode.

A crosscoder reads M models at once; a sparse autoencoder is the case M = 1, and a transcoder writes
other sources than it reads.
Reference: arXiv:2504.02922, section 2 and appendix; jaxdiff keeps its own axis order.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiff.kernels.largest import largest_per_row
from jaxdiff.kernels.product import matmul

Activation = Literal["relu", "topk", "batch_topk", "jumprelu", "group_max"]
CodeNorm = Literal["crosscoder", "sae", "mixed", "none", "decoupled"]


@dataclass(frozen=True)
class Dictionary:
    """Parameters of a dictionary over M models of width D with L latents.

    A batch [R, S, D] has S sources: models, sites, or both. A dictionary that says nothing else
    reads and writes all of them, so that M = N = S.

    Attributes:
        W_enc: Encoder; the models' products are summed before the activation.
        b_enc: Encoder bias.
        W_dec: Decoder rows, one per latent and model; their norms carry meaning.
        b_dec: Decoder bias.
        threshold: What a latent must exceed to be active at inference. batch_topk: its ranking key
            must, [] or, when decoupled, [M]. jumprelu: its value must, [L] or, when decoupled,
            [L, M]. Not used by relu and topk.
        activation: Rule that decides which latents are active.
        k: Active latents per token that the dictionary was trained for [latents per token];
            group_max: groups of neighbouring latents, of which each has one active latent at most.
        code_norm: How decoder norms weigh a latent in ranking and penalty.
        W_skip: Affine map from what is read to what is written, beside the latents.
        reads: Sources of a batch that the encoder reads; all when None.
        writes: Sources of a batch that are reconstructed; all when None.
    """

    W_enc: Float[Array, "M D L"]
    b_enc: Float[Array, " L"]
    W_dec: Float[Array, "L N D"]
    b_dec: Float[Array, "N D"]
    threshold: Float[Array, "*T"]
    activation: Activation = field(metadata={"static": True})
    k: float = field(metadata={"static": True})
    code_norm: CodeNorm = field(metadata={"static": True})
    W_skip: Float[Array, "M D N D"] | None = None
    reads: tuple[int, ...] | None = field(default=None, metadata={"static": True})
    writes: tuple[int, ...] | None = field(default=None, metadata={"static": True})

    def __post_init__(self):
        if self.activation not in get_args(Activation):
            raise ValueError(f"activation must be one of {get_args(Activation)}")
        if self.code_norm not in get_args(CodeNorm):
            raise ValueError(f"code_norm must be one of {get_args(CodeNorm)}")

    @property
    def sources(self) -> int:
        """Returns how many sources a batch must have, at least."""
        M, N = self.W_enc.shape[0], self.W_dec.shape[1]
        return 1 + max(*(self.reads or range(M)), *(self.writes or range(N)), 0)


LEAVES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip")
STATIC = ("activation", "k", "code_norm", "reads", "writes")


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


def read_by(d: Dictionary, x: Float[Array, "R S D"]) -> Float[Array, "R M D"]:
    """Returns the sources of a batch that the encoder reads."""
    return x if d.reads is None else x[:, jnp.array(d.reads)]


def written_by(d: Dictionary, x: Float[Array, "R S D"]) -> Float[Array, "R N D"]:
    """Returns the sources of a batch that the dictionary reconstructs."""
    return x if d.writes is None else x[:, jnp.array(d.writes)]


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
    product = matmul(x.reshape(rows, -1), d.W_enc.reshape(-1, d.W_enc.shape[-1]), dtype)
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
        x: What `read_by` returns of a batch, in the space that the dictionary was trained on (or
            raw after `fold`).

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
    elif d.activation == "group_max":
        keep = largest_of_groups(keys, round(d.k))
    else:
        keep = _top_rows(keys, jnp.int32(round(d.k)))
    return jnp.where(keep, _per_model(d, f), 0.0)


def _per_model(d: Dictionary, f: Float[Array, "R L"]) -> Float[Array, "R *ML"]:
    if d.code_norm != "decoupled":
        return f
    return jnp.broadcast_to(f[:, None, :], (f.shape[0], d.W_dec.shape[1], f.shape[1]))


def largest_of_groups(keys: Float[Array, "R L"], groups: int) -> Bool[Array, "R L"]:
    """Marks the largest positive key of each group of neighbours; ties go to the first."""
    parts = keys.reshape(len(keys), groups, -1)
    first = jnp.argmax(parts, axis=-1, keepdims=True)
    places = jnp.arange(parts.shape[-1])[None, None]
    return ((places == first) & (parts > 0)).reshape(keys.shape)


def _top_rows(keys, n):
    rows = largest_per_row(keys.reshape(-1, keys.shape[-1]), n)
    return rows.reshape(keys.shape)


def _safe_sqrt(squares):
    # The gradient of sqrt at 0 is infinite; of this it is 0. NaN stays NaN.
    zero = squares == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))
