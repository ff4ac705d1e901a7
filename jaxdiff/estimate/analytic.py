"""The costs of a run's programs from formulas, where no compiler for the hardware is at hand."""

import math

import jax
import jax.numpy as jnp

from jaxdiff.config import DictionaryConfig, RunConfig, TrainConfig
from jaxdiff.estimate.collectives import Volume
from jaxdiff.estimate.costs import PROGRAM, Costs
from jaxdiff.models import ModelConfig
from jaxdiff.models._lm import abstract
from jaxdiff.models._sites import layer_and_part

# Passes over the scores: products, rectifier, keys, selection, mask and their gradients.
_PASSES = 14
# Bytes that Adam moves for each parameter: gradient written, read for its norm and for the update;
# parameter and both moments read and written; the parameter read by five products.
_UPDATE = 12 + 24
_READS = 5


def train_costs(
    dictionary: DictionaryConfig,
    train: TrainConfig,
    shape: tuple[int, int],
    dtype: str,
    sizes: tuple[int, int],
) -> Costs:
    """Returns what the dense step of training asks of one of `data * latent` devices.

    With B rows, width MD and L latents it does five products of `2 B MD L` operations: encode,
    decode, and the gradients of codes, decoder and encoder; AuxK adds three. The reconstruction is
    summed over `latent`, gradients over `data`.

    Args:
        dictionary: Settings of the dictionary.
        train: Settings of training.
        shape: (M, D) of the activations.
        dtype: Their dtype as stored.
        sizes: Devices along `data` and `latent`.
    """
    data, latent = sizes
    rows, width = train.batch / data, math.prod(shape)
    latents = dictionary.latents / latent
    parameters = 2 * width * latents + latents + width
    revived = dictionary.activation != "relu" and dictionary.aux > 0
    products = 8 if revived else 5
    item, scores = jnp.dtype(train.dtype).itemsize, rows * latents * 4
    reconstruction = rows * width * 4
    copies = parameters * item if item < 4 else 0.0
    sums = {}
    if latent > 1:
        sums["latent"] = _all_reduce(1 + revived, (1 + revived) * reconstruction, latent)
    if data > 1:
        sums["data"] = _all_reduce(4, 4 * parameters, data)
    total = Volume(0, 0.0, 0.0, 1)
    for volume in sums.values():
        total = total.plus(volume)
    return Costs(
        memory={
            "parameters": 4 * parameters,
            "moments": 8 * parameters,
            "counters": 4 * latents,
            "inputs": rows * width * jnp.dtype(dtype).itemsize,
            "temporaries": 4 * parameters + copies + 4 * scores + 3 * reconstruction,
            PROGRAM: 0.0,
        },
        flops=2.0 * products * rows * width * latents,
        bytes=parameters * (_UPDATE + _READS * item)
        + _PASSES * scores
        + 2 * products * reconstruction,
        tokens=train.batch,
        dtype=train.dtype,
        collectives={"all-reduce": total} if sums else {},
    )


def harvest_costs(
    config: RunConfig, specs: tuple[ModelConfig, ...], site: str, sizes: tuple[int, int]
) -> Costs:
    """Returns what a forward pass of all models up to a site asks of one device.

    A token takes two operations for each weight of the blocks up to the site, and four for each
    coordinate of each query and each token that it looks at. Weights are split over `latent` and
    gathered block by block.

    Args:
        config: The run.
        specs: The models.
        site: Canonical name of the site.
        sizes: Devices along `data` and `latent`.
    """
    devices, latent = math.prod(sizes), sizes[1]
    item = jnp.dtype(config.models.dtype).itemsize
    rows = math.ceil(config.harvest.batch / devices)
    tokens = rows * config.text.context
    flops = weights = gathered = largest = 0.0
    for spec in specs:
        blocks = _blocks(spec, site)
        block, used = _weights(spec)
        flops += 2 * tokens * blocks * used
        flops += 4 * tokens * config.text.context * blocks * spec.n_heads * spec.head_dim
        total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(spec)[1]))
        weights += total * item / latent
        gathered += blocks * block * item
        wide = max(spec.d_mlp * 2, spec.n_heads * config.text.context)
        largest = max(largest, block * item + tokens * (wide + 4 * spec.d_model) * item)
    stored = tokens * len(specs) * specs[0].d_model
    kept = stored * (jnp.dtype(config.harvest.dtype).itemsize + 4)
    collectives = {}
    if latent > 1:
        part = (latent - 1) / latent
        collectives["all-gather"] = Volume(len(specs), gathered, gathered * part, latent)
    return Costs(
        memory={
            "parameters": weights,
            "inputs": tokens * 4.0 * (len(specs) + 2),
            "outputs": kept,
            "temporaries": largest + stored * 4,
            PROGRAM: 0.0,
        },
        flops=flops,
        bytes=gathered + 12 * stored * item,
        tokens=rows * devices * config.text.context,
        dtype=config.models.dtype,
        collectives=collectives,
    )


def _all_reduce(count: int, size: float, devices: int) -> Volume:
    """Returns the traffic of summing `size` bytes over a ring; `count` results in all."""
    return Volume(count, size, size * 2 * (devices - 1) / devices, devices)


def _blocks(spec: ModelConfig, site: str) -> int:
    """Returns how many blocks are computed for a site."""
    layer, _ = layer_and_part(site)
    if layer == "*" or not str(layer).isdecimal():
        return 0 if site in ("embed", "pos_embed") else spec.n_layers
    return int(layer) + 1


def _weights(spec: ModelConfig) -> tuple[float, float]:
    """Returns the weights of a block, and those of them that a token goes through."""
    block = used = 0.0
    for path, leaf in jax.tree_util.tree_flatten_with_path(abstract(spec)[1]["blocks"])[0]:
        size = math.prod(leaf.shape[1:])
        experts = spec.experts and leaf.ndim > 3 and "router" not in jax.tree_util.keystr(path)
        block += size
        used += size * spec.experts_per_token / spec.experts if experts else size
    return block, used
