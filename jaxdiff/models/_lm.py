"""A model as a value: static structure and parameters in one pytree."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from jaxdiff.models.decoder import Decoder
from jaxdiff.models.spec import ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LM:
    """A language model.

    Attributes:
        params: Nested dict of arrays. Those under `blocks` are stacked over layers, and the blocks
            run in a loop; or a tuple has one dict a layer (`unstack`), and they run one by one.
        graphdef: Structure of the Flax NNX module that the parameters belong to.
        spec: What the model is made of.
        edits: Edits that belong to the model: whatever runs it applies them first (`with_edits`).
        changes: What was done to the weights since the model was made, in order: `fold_norms`,
            `merge ADAPTER`. `save` writes it and `load` reads it. Models that differ in nothing
            else share the programs of `run`, `run_together`, `generate`, `sweep`, `attribute` and
            sessions; `jax.tree.map` over two of them takes their `params`.
    """

    params: Mapping[str, Any]
    graphdef: nnx.GraphDef = field(metadata={"static": True})
    spec: ModelConfig = field(metadata={"static": True})
    edits: tuple[Any, ...] = ()
    changes: tuple[str, ...] = field(default=(), metadata={"static": True})


def stacked(lm: LM) -> bool:
    """Returns whether the weights of the blocks are stacked over layers."""
    return not isinstance(lm.params["blocks"], tuple)


def unstack(lm: LM) -> LM:
    """Returns the model with the weights of each block apart.

    Its programs take longer to compile and need no copy of a layer's weights to run it, which is
    faster on CPU where a batch has few tokens.
    """
    if not stacked(lm):
        return lm
    apart = tuple(
        jax.tree.map(lambda leaf, i=i: leaf[i], lm.params["blocks"])
        for i in range(lm.spec.n_layers)
    )
    return replace(lm, params={**lm.params, "blocks": apart})


def stack(lm: LM) -> LM:
    """Inverts `unstack`."""
    if stacked(lm):
        return lm
    blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lm.params["blocks"])
    return replace(lm, params={**lm.params, "blocks": blocks})


def untie(lm: LM) -> LM:
    """Returns the model with an unembedding of its own, equal to the embedding if that was tied."""
    if not lm.spec.tied:
        return lm
    spec = replace(lm.spec, tied=False)
    params = {**lm.params, "unembedding": lm.params["embedding"]}
    return changed(replace(lm, params=params, graphdef=abstract(spec)[0], spec=spec), "untie")


def changed(lm: LM, change: str) -> LM:
    """Returns the model with one more line in the record of what was done to its weights."""
    return replace(lm, changes=(*lm.changes, change))


def module(lm: LM) -> Decoder:
    """Returns the model as a Flax module; its blocks stand for the first one if they are apart."""
    blocks = lm.params["blocks"]
    return nnx.merge(
        lm.graphdef, dict(lm.params) | {"blocks": blocks if stacked(lm) else blocks[0]}
    )


def init(spec: ModelConfig, *, key: Key[Array, ""]) -> LM:
    """Returns a model with random float32 parameters, scaled by fan-in, ready to be trained."""
    return LM(params=_init(spec, key), graphdef=abstract(spec)[0], spec=spec)


@partial(jax.jit, static_argnames="spec")
def _init(spec: ModelConfig, key: Array) -> dict[str, Any]:
    # One draw for the whole model: a draw for each matrix takes seconds to compile.
    sizes = [prod(leaf.shape) for leaf in jax.tree.leaves(abstract(spec)[1])]
    pool, used = jax.random.normal(key, (sum(sizes),)), 0

    def normal(*shape: int) -> Array:
        nonlocal used
        used += prod(shape)
        return pool[used - prod(shape) : used].reshape(shape)

    return nnx.to_pure_dict(nnx.state(Decoder(spec, normal=normal)))


@lru_cache(maxsize=32)
def without_weights(spec: ModelConfig) -> LM:
    """Returns a model that has the shapes of weights in their place, of float32."""
    graphdef, shapes = abstract(spec)
    return LM(params=shapes, graphdef=graphdef, spec=spec)


def abstract(spec: ModelConfig) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Returns the NNX structure and the shapes of the parameters of a model, without making it."""
    module = nnx.eval_shape(lambda: Decoder(spec, normal=lambda *shape: jnp.zeros(shape)))
    graphdef, state = nnx.split(module)
    return graphdef, nnx.to_pure_dict(state)


def parameters(model: LM | ModelConfig) -> int:
    """Returns the number of parameters; tied embeddings count once."""
    params = model.params if isinstance(model, LM) else abstract(model)[1]
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(params))
