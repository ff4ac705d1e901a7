"""Means that nothing reads, taken out of weights: the same predictions, and streams without a mean.

    lm = fold_norms(center_writing(lm))

As in `fold_norms`, sums are in float32 and the results in the dtype of the weights, which
may be stacked or apart and have low-rank updates beside them.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._lm import LM, changed, untie
from jaxdiff.models.folding import check_no_edits, of_each_block, with_leaves
from jaxdiff.models.spec import ModelConfig

_WRITERS = (("attn", "o"), ("mlp", "down"))
_OUTPUTS = {"weight": -2, "lora_b": -2, "bias": -1}
"""Axis of the outputs of a linear map, by parameter."""


def center_unembedding(lm: LM) -> LM:
    """Takes the mean over the vocabulary out of the unembedding, which is not tied any more.

    Logits then have mean 0 over the vocabulary; their log-probabilities stay the same.

    Args:
        lm: The model.

    Returns:
        The model with the same log-probabilities, untied.

    Raises:
        JaxdiffError: If logits have a soft cap, which makes something else of shifted ones, or the
            model carries edits.
    """
    check_no_edits(lm, "center_unembedding")
    if lm.spec.logit_softcap is not None:
        raise JaxdiffError(
            f"logits go through a soft cap of {lm.spec.logit_softcap}, after which those of a "
            "centered unembedding have other probabilities",
            where="center_unembedding",
            fix="leave the unembedding as it is; log-probabilities have no common shift",
        )
    lm = untie(lm)
    unembedding = _without_mean(lm.params["unembedding"], axis=-2)
    return changed(with_leaves(lm, {"unembedding": unembedding}), "center_unembedding")


def center_writing(lm: LM) -> LM:
    """Takes the mean over the width out of all that is added to the residual stream.

    The embeddings of tokens and positions and the outputs of attention and MLP have mean 0 then,
    and so has the stream everywhere. LayerNorm, through which all is read, takes it out anyway.

    Args:
        lm: A model with LayerNorm, such as GPT-2 and GPT-NeoX.

    Returns:
        The model with the same logits, untied: the unembedding keeps its mean.

    Raises:
        JaxdiffError: If something reads the mean, or a norm would put it back, or the model
            carries edits.
    """
    check_no_edits(lm, "center_writing")
    _check_ignores_mean(lm.spec)
    lm = untie(lm)
    return changed(with_leaves(lm, _centered(lm.params)), "center_writing")


@partial(jax.jit, inline=True)
def _centered(params: Mapping[str, Any]) -> dict[str, Any]:
    ends = [name for name in ("embedding", "position_embedding") if name in params]
    return {
        **{name: _without_mean(params[name], axis=-1) for name in ends},
        "blocks": of_each_block(_centered_block, params["blocks"]),
    }


def _centered_block(block: Mapping[str, Any]) -> dict[str, Any]:
    return {
        branch: {
            name: {
                key: _without_mean(leaf, axis=_OUTPUTS[key])
                for key, leaf in block[branch][name].items()
                if key in _OUTPUTS
            }
        }
        for branch, name in _WRITERS
    }


@partial(jax.jit, static_argnames="axis", inline=True)
def _without_mean(leaf: Array, *, axis: int) -> Array:
    wide = leaf.astype(jnp.float32)
    return (wide - jnp.mean(wide, axis=axis, keepdims=True)).astype(leaf.dtype)


def _check_ignores_mean(spec: ModelConfig) -> None:
    reasons = {
        "its RMSNorms divide by the size of the stream, mean included": spec.norm != "layer",
        "without norms before them, attention and MLP read the mean": not spec.pre_norms,
        "the norms after attention and MLP would add a mean again": spec.post_norms,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise JaxdiffError(
            f"a {spec.architecture} reads the mean of its residual stream: {'; '.join(found)}",
            where="center_writing",
            fix="it is for models whose LayerNorms ignore the mean: GPT-2, GPT-NeoX",
        )
