"""The forward pass of a harvest from formulas."""

import math

import jax
import jax.numpy as jnp

from jaxdiff.config import RunConfig
from jaxdiff.estimate.costs import Costs
from jaxdiff.estimate.programs import blocks_until
from jaxdiff.estimate.rings import all_gather, summed
from jaxdiff.estimate.sources import Sources
from jaxdiff.models import ModelConfig
from jaxdiff.models._lm import abstract

# Passes over the stream, the hidden layer and the attention scores of a block, none of them fused.
_STREAM, _HIDDEN, _SCORES = 24, 8, 8


def harvest_costs(config: RunConfig, sources: Sources, sizes: tuple[int, int]) -> Costs:
    """Returns what a forward pass of all models up to the last of the sites asks of one device.

    A token takes two operations for each weight of the blocks up to that site, and four for each
    coordinate of each query and each token that it looks at. Weights are split over `latent` and
    gathered block by block.

    Args:
        config: The run.
        sources: Models and sites.
        sizes: Devices along `data` and `latent`.
    """
    devices, latent = math.prod(sizes), sizes[1]
    item = jnp.dtype(config.models.dtype).itemsize
    rows = math.ceil(config.harvest.batch / devices)
    tokens = rows * config.text.context
    specs = sources.specs
    flops = moved = weights = gathered = largest = 0.0
    for spec in specs:
        blocks = blocks_until(spec, sources.site)
        block, used = _weights(spec)
        flops += 2 * tokens * blocks * used
        flops += 4 * tokens * config.text.context * blocks * spec.n_heads * spec.head_dim
        scores, hidden = spec.n_heads * config.text.context, spec.d_mlp
        passed = _STREAM * spec.d_model + _HIDDEN * hidden + _SCORES * scores
        moved += blocks * (block + tokens * passed) * item
        total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(spec)[1]))
        weights += total * item / latent
        gathered += blocks * block * item
        wide = max(hidden * 2, scores)
        largest = max(largest, block * item + tokens * (wide + 4 * spec.d_model) * item)
    stored = tokens * math.prod(sources.shape)
    kept = stored * jnp.dtype(sources.dtype).itemsize
    return Costs(
        memory={
            "parameters": weights,
            "inputs": tokens * 4.0 * (len(specs) + 2),
            "outputs": kept,
            "temporaries": largest + stored * 4,
        },
        flops=flops,
        bytes=moved + (gathered if latent > 1 else 0.0) + 2 * kept,
        tokens=rows * devices * config.text.context,
        precision="bfloat16" if config.models.dtype == "bfloat16" else "default",
        collectives=summed("all-gather", [all_gather(len(specs), gathered, latent)]),
    )


def _weights(spec: ModelConfig) -> tuple[float, float]:
    """Returns the weights of a block, and those of them that a token goes through."""
    block = used = 0.0
    for path, leaf in jax.tree_util.tree_flatten_with_path(abstract(spec)[1]["blocks"])[0]:
        size = math.prod(leaf.shape[1:])
        experts = spec.experts and leaf.ndim > 3 and "router" not in jax.tree_util.keystr(path)
        block += size
        used += size * spec.experts_per_token / spec.experts if experts else size
    return block, used
