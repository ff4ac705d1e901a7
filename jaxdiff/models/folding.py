"""Other weights, the same predictions: norms folded into maps, means that nothing reads removed.

    lm = fold_norms(center_writing(lm))

Products of weights then say what one part of a model passes to another: no weight of a norm stands
between them. Products and sums are in float32, the results in the dtype of the weights, to whose
rounding predictions stay the same. All are `jit`-able and differentiable, for weights stacked and
apart, and a low-rank update beside a matrix is treated as the matrix is.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._lm import LM, abstract
from jaxdiff.models.spec import ModelConfig

Params = Mapping[str, Any]

_READERS = {"attn_norm": ("attn", ("q", "k", "v")), "mlp_norm": ("mlp", ("gate", "up", "router"))}
_WRITERS = (("attn", "o"), ("mlp", "down"))
_OUTPUTS = {"weight": -2, "lora_b": -2, "bias": -1}
"""Axis of the outputs of a linear map, by parameter."""


def untie(lm: LM) -> LM:
    """Returns the model with an unembedding of its own, equal to the embedding if that was tied."""
    if not lm.spec.tied:
        return lm
    spec = replace(lm.spec, tied=False)
    params = {**lm.params, "unembedding": lm.params["embedding"]}
    return replace(lm, params=params, graphdef=abstract(spec)[0], spec=spec)


def fold_norms(lm: LM) -> LM:
    """Moves the weights of norms into the linear maps that read them.

        W (s * n + b) + c = (W s) n + (W b + c)

    Here n is the normalised stream, s the norm's weight with its offset, b the bias of LayerNorm,
    c that of the map. The norm before attention goes into q, k and v, that before the MLP into
    gate, up and router, the final one into the unembedding, which is not tied any more. These norms
    then multiply by 1 and add 0. Norms of branches' outputs and of queries and keys stay: what
    reads them is not linear.

    Where the maps have no bias, as an unembedding never has, LayerNorm keeps `b / s`, which `W s`
    makes the same of; where s is 0 it keeps both s and b.

    The sites `attn.in`, `mlp.in` and `final_norm`, which norms return, change; no others do.

    Args:
        lm: The model.

    Returns:
        The model with the same logits, untied.

    Raises:
        JaxdiffError: If the model carries edits.
    """
    _check_no_edits(lm, "fold_norms")
    lm = untie(lm)
    return replace(lm, params=_folded(lm.params, spec=lm.spec))


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
    _check_no_edits(lm, "center_unembedding")
    if lm.spec.logit_softcap is not None:
        raise JaxdiffError(
            f"logits go through a soft cap of {lm.spec.logit_softcap}, after which those of a "
            "centered unembedding have other probabilities",
            where="center_unembedding",
            fix="leave the unembedding as it is; log-probabilities have no common shift",
        )
    lm = untie(lm)
    unembedding = _without_mean(lm.params["unembedding"], axis=-2)
    return replace(lm, params={**lm.params, "unembedding": unembedding})


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
    _check_no_edits(lm, "center_writing")
    _check_ignores_mean(lm.spec)
    lm = untie(lm)
    return replace(lm, params=_centered(lm.params))


@partial(jax.jit, static_argnames="spec", inline=True)
def _folded(params: Params, *, spec: ModelConfig) -> dict[str, Any]:
    # LayerNorm has no offset, whatever the spec says.
    offset = spec.norm_offset if spec.norm == "rms" else 0.0
    head = {"unembedding": {"weight": params["unembedding"]}}
    final_norm, head = _moved(params["final_norm"], head, offset)
    return {
        **params,
        "blocks": _of_each(partial(_folded_block, offset=offset), params["blocks"]),
        "final_norm": final_norm,
        "unembedding": head["unembedding"]["weight"],
    }


def _folded_block(block: Params, *, offset: float) -> dict[str, Any]:
    new = dict(block)
    for norm, (branch, names) in _READERS.items():
        if norm in block:
            maps = {name: block[branch][name] for name in names if name in block[branch]}
            new[norm], maps = _moved(block[norm], maps, offset)
            new[branch] = {**block[branch], **maps}
    return new


def _moved(
    norm: Params, maps: Mapping[str, Params], offset: float
) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    """Returns a norm without its weights, and the maps that read it with them."""
    dtype = norm["weight"].dtype
    scale = norm["weight"].astype(jnp.float32) + offset
    one = jnp.full_like(norm["weight"], 1 - offset)
    if "bias" not in norm:
        return {"weight": one}, {name: _scaled(each, scale) for name, each in maps.items()}
    shift = norm["bias"].astype(jnp.float32)
    if all("bias" in each for each in maps.values()):
        shifted = {name: _shifted(each, shift) for name, each in maps.items()}
        new = {name: _scaled(each, scale) for name, each in shifted.items()}
        return {"weight": one, "bias": jnp.zeros_like(norm["bias"])}, new
    # A map cannot take a factor of 0 and pass the bias on.
    given = jnp.where(scale == 0, 1.0, scale)
    kept = {"weight": (scale / given).astype(dtype), "bias": (shift / given).astype(dtype)}
    return kept, {name: _scaled(each, given) for name, each in maps.items()}


def _scaled(linear: Params, scale: Float[Array, " i"]) -> dict[str, Array]:
    """Returns a linear map of inputs that it multiplies by `scale` first."""

    def multiplied(leaf: Array) -> Array:
        wide = leaf.astype(jnp.float32) * scale[(None,) * (leaf.ndim - 1)]
        return wide.astype(leaf.dtype)

    read = ("weight", "lora_a")
    return {key: multiplied(leaf) if key in read else leaf for key, leaf in linear.items()}


def _shifted(linear: Params, shift: Float[Array, " i"]) -> dict[str, Array]:
    """Returns a linear map with a bias, of inputs to which it adds `shift` first."""
    bias = linear["bias"].astype(jnp.float32) + _times(linear["weight"], shift)
    if "lora_a" in linear:
        bias += _times(linear["lora_b"], _times(linear["lora_a"], shift))
    return {**linear, "bias": bias.astype(linear["bias"].dtype)}


def _times(matrix: Float[Array, "o i"], x: Float[Array, " i"]) -> Float[Array, " o"]:
    # No `dot`: on GPU and TPU its precision is a setting, and less than float32 by default.
    return jnp.sum(matrix.astype(jnp.float32) * x[None, :], axis=-1)


@jax.jit
def _centered(params: Params) -> dict[str, Any]:
    ends = [name for name in ("embedding", "position_embedding") if name in params]
    return {
        **params,
        **{name: _without_mean(params[name], axis=-1) for name in ends},
        "blocks": _of_each(_centered_block, params["blocks"]),
    }


def _centered_block(block: Params) -> dict[str, Any]:
    new = dict(block)
    for branch, name in _WRITERS:
        linear = {
            key: _without_mean(leaf, axis=_OUTPUTS[key]) if key in _OUTPUTS else leaf
            for key, leaf in block[branch][name].items()
        }
        new[branch] = {**block[branch], name: linear}
    return new


@partial(jax.jit, static_argnames="axis", inline=True)
def _without_mean(leaf: Array, *, axis: int) -> Array:
    wide = leaf.astype(jnp.float32)
    return (wide - jnp.mean(wide, axis=axis, keepdims=True)).astype(leaf.dtype)


def _of_each(change: Callable[[Params], dict[str, Any]], blocks: Any) -> Any:
    """Changes the parameters of each block, which are stacked over layers or apart."""
    return tuple(map(change, blocks)) if isinstance(blocks, tuple) else jax.vmap(change)(blocks)


def _check_no_edits(lm: LM, where: str) -> None:
    if lm.edits:
        raise JaxdiffError(
            f"the model carries {len(lm.edits)} edits, which may mean something else then",
            where=where,
            fix=f"change the weights first: with_edits({where}(lm), edits)",
        )


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
