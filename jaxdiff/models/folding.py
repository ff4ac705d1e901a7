"""Norms folded into the linear maps that read them: other weights, the same predictions.

Products of weights then say what one part of a model passes to another: no weight of a norm stands
between them. Products and sums are in float32, the results in the dtype of the weights, to whose
rounding predictions stay the same. `fold_norms` is pure: compile and differentiate it. It takes
weights stacked or apart, and treats a low-rank update beside a matrix as it does the matrix.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._lm import LM, changed, untie
from jaxdiff.models._weights import flatten, unflatten
from jaxdiff.models.layers import offset_of
from jaxdiff.models.spec import ModelConfig

Params = Mapping[str, Any]

_READERS = {"attn_norm": ("attn", ("q", "k", "v")), "mlp_norm": ("mlp", ("gate", "up", "router"))}


def fold_norms(lm: LM) -> LM:
    """Moves the weights of norms into the linear maps that read them.

        W (s * n + b) + c = (W s) n + (W b + c)

    Here n is the normalised stream, s the norm's weight with its offset, b the bias of LayerNorm,
    c that of the map. The norm before attention goes into q, k and v, that before the MLP into
    gate, up and router, the final one into the unembedding, which is not tied any more. These norms
    then multiply by 1 and add 0. Norms of branches' outputs and of queries and keys stay: what
    reads them is not linear.

    Where the maps have no bias, as an unembedding never has, LayerNorm keeps `b / s`, so that
    `(W s) (n + b / s)` is the same; where s is 0 it keeps both s and b.

    The sites `attn.in`, `mlp.in` and `final_norm`, which norms return, change; no others do.

    Args:
        lm: The model.

    Returns:
        The model with the same logits, untied.

    Raises:
        JaxdiffError: If the model carries edits.
    """
    check_no_edits(lm, "fold_norms")
    lm = untie(lm)
    return changed(with_leaves(lm, _folded(lm.params, spec=lm.spec)), "fold_norms")


def with_leaves(lm: LM, new: Params) -> LM:
    """Returns the model with new parameters in place of some; it shares the others."""
    return replace(lm, params=unflatten(flatten(lm.params) | flatten(new)))


def check_no_edits(lm: LM, where: str) -> None:
    """Refuses a model with edits: what they find at their sites may not stay what it is."""
    if lm.edits:
        raise JaxdiffError(
            f"the model carries {len(lm.edits)} edits, which may mean something else then",
            where=where,
            fix=f"change the weights first: with_edits({where}(lm), edits)",
        )


def of_each_block(change: Callable[[Params], dict[str, Any]], blocks: Any) -> Any:
    """Returns what changes in each block, stacked over layers or apart as the blocks are."""
    return tuple(map(change, blocks)) if isinstance(blocks, tuple) else jax.vmap(change)(blocks)


@partial(jax.jit, static_argnames="spec", inline=True)
def _folded(params: Params, *, spec: ModelConfig) -> dict[str, Any]:
    offset = offset_of(spec)
    head = {"unembedding": {"weight": params["unembedding"]}}
    final_norm, head = _moved(params["final_norm"], head, offset)
    return {
        "blocks": of_each_block(partial(_folded_block, offset=offset), params["blocks"]),
        "final_norm": final_norm,
        "unembedding": head["unembedding"]["weight"],
    }


def _folded_block(block: Params, *, offset: float) -> dict[str, Any]:
    new = {}
    for norm, (branch, names) in _READERS.items():
        if norm in block:
            maps = {name: block[branch][name] for name in names if name in block[branch]}
            new[norm], new[branch] = _moved(block[norm], maps, offset)
    return new


def _moved(
    norm: Params, maps: Mapping[str, Params], offset: float
) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    """Returns a norm without its weights, and what they change in the maps that read it."""
    dtype = norm["weight"].dtype
    scale = norm["weight"].astype(jnp.float32) + offset
    one = jnp.full_like(norm["weight"], 1 - offset)
    if "bias" not in norm:
        return {"weight": one}, {name: _scaled(each, scale) for name, each in maps.items()}
    shift = norm["bias"].astype(jnp.float32)
    if all("bias" in each for each in maps.values()):
        new = {
            name: {**_scaled(each, scale), "bias": _shifted(each, shift)}
            for name, each in maps.items()
        }
        return {"weight": one, "bias": jnp.zeros_like(norm["bias"])}, new
    # A map cannot take a factor of 0 and pass the bias on.
    given = jnp.where(scale == 0, 1.0, scale)
    kept = {"weight": (scale / given).astype(dtype), "bias": (shift / given).astype(dtype)}
    return kept, {name: _scaled(each, given) for name, each in maps.items()}


def _scaled(linear: Params, scale: Float[Array, " i"]) -> dict[str, Array]:
    """Returns the matrices of a map of inputs that it multiplies by `scale` first."""

    def multiplied(leaf: Array) -> Array:
        wide = leaf.astype(jnp.float32) * scale[(None,) * (leaf.ndim - 1)]
        return wide.astype(leaf.dtype)

    return {key: multiplied(linear[key]) for key in ("weight", "lora_a") if key in linear}


def _shifted(linear: Params, shift: Float[Array, " i"]) -> Float[Array, " o"]:
    """Returns the bias of a map of inputs to which it adds `shift` first."""
    bias = linear["bias"].astype(jnp.float32) + _times(linear["weight"], shift)
    if "lora_a" in linear:
        bias += _times(linear["lora_b"], _times(linear["lora_a"], shift))
    return bias.astype(linear["bias"].dtype)


def _times(matrix: Float[Array, "o i"], x: Float[Array, " i"]) -> Float[Array, " o"]:
    # No `dot`: on GPU and TPU its precision is a setting, and less than float32 by default.
    return jnp.sum(matrix.astype(jnp.float32) * x[None, :], axis=-1)
