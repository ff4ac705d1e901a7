"""Which latents are active in training, where that depends on the batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxdiff.dictionaries.dictionary import (
    Dictionary,
    _per_model,
    _top_rows,
    code_norms,
    largest_of_groups,
    pre_activations,
    ranking_keys,
)
from jaxdiff.kernels.largest import largest


class Codes(NamedTuple):
    """Latents of a batch.

    Attributes:
        pre: Before the activation.
        f: relu(pre).
        keys: What latents are ranked by, for each model when decoupled.
        keep: Which of them are active.
    """

    pre: Float[Array, "B L"]
    f: Float[Array, "B L"]
    keys: Float[Array, "B *NL"]
    keep: Bool[Array, "B *NL"]


def train_codes(
    d: Dictionary, x: Float[Array, "B M D"], *, k: Float[Array, ""], dtype: Any = jnp.float32
) -> Codes:
    """Returns the latents of a batch in training.

    batch_topk keeps the round(k * B) largest keys of the whole batch (for each model when
    decoupled), topk the round(k) largest of each row, group_max the largest of each group, relu all
    positive values, and jumprelu those above the latent's threshold.

    Args:
        d: The dictionary.
        x: What it reads, normalised.
        k: Active latents per token [latents per token].
        dtype: Dtype of the matrix products.
    """
    pre = pre_activations(d, x, dtype=dtype)
    f = jax.nn.relu(pre)
    keys = ranking_keys(f, code_norms(d))
    # Selection is a constant of differentiation; keys are float32 whatever the products are.
    fixed = lax.stop_gradient(keys)
    if d.activation == "relu":
        keep = _per_model(d, f) > 0
    elif d.activation == "jumprelu":
        keep = (f > 0) & (f > d.threshold[None])
    elif d.activation == "topk":
        keep = _top_rows(fixed, jnp.round(k).astype(jnp.int32))
    elif d.activation == "group_max":
        keep = largest_of_groups(fixed, round(d.k))
    else:
        keep = _of_batch(fixed, jnp.round(k * x.shape[0]).astype(jnp.int32))
    return Codes(pre, f, keys, keep)


def _of_batch(keys, budget):
    if keys.ndim == 2:
        return largest(keys, budget)
    models = [largest(keys[:, m], budget) for m in range(keys.shape[1])]
    return jnp.stack(models, axis=1)
