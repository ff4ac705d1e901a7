"""The costs of a run's programs from formulas, where no compiler for the hardware is at hand."""

import math

import jax
import jax.numpy as jnp

from jaxdiff.config import DictionaryConfig, RunConfig, TrainConfig
from jaxdiff.estimate.collectives import Volume
from jaxdiff.estimate.costs import Costs
from jaxdiff.estimate.programs import blocks_until, precision
from jaxdiff.models import ModelConfig
from jaxdiff.models._lm import abstract
from jaxdiff.training.compiled import is_sparse

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
    """Returns what a step of training asks of one of `data * latent` devices.

    Args:
        dictionary: Settings of the dictionary.
        train: Settings of training.
        shape: (M, D) of the activations.
        dtype: Their dtype as stored.
        sizes: Devices along `data` and `latent`.
    """
    make = sparse_costs if is_sparse(dictionary, train) else dense_costs
    return make(dictionary, train, math.prod(shape), jnp.dtype(dtype).itemsize, sizes)


def dense_costs(
    dictionary: DictionaryConfig,
    train: TrainConfig,
    width: int,
    stored: int,
    sizes: tuple[int, int],
) -> Costs:
    """Returns the costs of the dense step.

    With B rows, width MD and L latents it does five products of `2 B MD L` operations: encode,
    decode, and the gradients of codes, decoder and encoder; AuxK adds three. The reconstruction is
    summed over `latent`, gradients over `data`.
    """
    data, latent = sizes
    rows, latents = train.batch / data, dictionary.latents / latent
    parameters = 2 * width * latents + latents + width
    revived = not dictionary.penalised and dictionary.aux > 0
    products, item = 8 if revived else 5, jnp.dtype(train.dtype).itemsize
    rounded = item if item < 4 else 0
    scores, reconstruction = rows * latents * 4, rows * width * 4
    sums = [
        _all_reduce(1 + revived, (1 + revived) * reconstruction, latent),
        _all_reduce(4, 4 * parameters, data),
    ]
    return Costs(
        memory={
            "parameters": 4 * parameters,
            "moments": 8 * parameters,
            "counters": 4 * latents,
            "inputs": rows * width * stored,
            # Gradients, parameters rounded for the products, scores, and what is as large as x.
            "temporaries": (4 + rounded) * parameters + 4 * scores + 3 * reconstruction,
        },
        flops=2.0 * products * rows * width * latents,
        bytes=parameters * (_UPDATE + _READS * item)
        + _PASSES * scores
        + 2 * products * reconstruction,
        tokens=train.batch,
        precision=precision(train),
        collectives=_summed("all-reduce", sums),
    )


def sparse_costs(
    dictionary: DictionaryConfig,
    train: TrainConfig,
    width: int,
    stored: int,
    sizes: tuple[int, int],
) -> Costs:
    """Returns the costs of the sparse step, without those of AuxK.

    Latents are split over all devices, and each sees the whole batch of B rows. One product of
    `2 B MD L` operations is left, the encoder's; decode and the gradients follow the k B selected
    entries in four passes of `2 k B MD` operations, and each entry moves a row in each pass.
    """
    devices = math.prod(sizes)
    rows, latents = float(train.batch), dictionary.latents / devices
    parameters = 2 * width * latents + latents + width
    entries = dictionary.k * rows / devices
    item, moment = jnp.dtype(train.dtype).itemsize, jnp.dtype(train.moment_dtype).itemsize
    rounded = item if item < 4 else 0
    scores, reconstruction = rows * latents * 4, rows * width * 4
    touched = min(1.0, entries / latents)
    return Costs(
        memory={
            "parameters": 4 * parameters,
            "moments": moment * parameters,
            "counters": 8 * latents,
            "inputs": rows / sizes[0] * width * stored,
            "temporaries": rounded * parameters / 2 + scores + 4 * reconstruction,
        },
        flops=2 * rows * width * latents + 8 * entries * width,
        bytes=parameters / 2 * item
        + touched * parameters * 2 * (4 + moment)
        + 2 * scores
        + 4 * entries * width * 4
        + 6 * reconstruction,
        tokens=train.batch,
        precision=precision(train),
        collectives=_summed("all-reduce", [_all_reduce(1, reconstruction, devices)])
        | _summed("all-gather", [_all_gather(1, rows * width * stored, sizes[0])]),
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
        blocks = blocks_until(spec, site)
        block, used = _weights(spec)
        flops += 2 * tokens * blocks * used
        flops += 4 * tokens * config.text.context * blocks * spec.n_heads * spec.head_dim
        total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(spec)[1]))
        weights += total * item / latent
        gathered += blocks * block * item
        wide = max(spec.d_mlp * 2, spec.n_heads * config.text.context)
        largest = max(largest, block * item + tokens * (wide + 4 * spec.d_model) * item)
    stored = tokens * len(specs) * specs[0].d_model
    kept = stored * (jnp.dtype(config.harvest.computed).itemsize + 4)
    return Costs(
        memory={
            "parameters": weights,
            "inputs": tokens * 4.0 * (len(specs) + 2),
            "outputs": kept,
            "temporaries": largest + stored * 4,
        },
        flops=flops,
        bytes=gathered + 12 * stored * item,
        tokens=rows * devices * config.text.context,
        precision="bfloat16" if config.models.dtype == "bfloat16" else "default",
        collectives=_summed("all-gather", [_all_gather(len(specs), gathered, latent)]),
    )


def _all_reduce(count: int, size: float, devices: int) -> Volume:
    """Returns the traffic of summing `size` bytes, in `count` results, over a ring."""
    return Volume(count, size, size * 2 * (devices - 1) / devices, devices)


def _all_gather(count: int, size: float, devices: int) -> Volume:
    return Volume(count, size, size * (devices - 1) / devices, devices)


def _summed(kind: str, volumes: list[Volume]) -> dict[str, Volume]:
    """Returns the volume of one kind; nothing where only one device takes part."""
    total = Volume(0, 0.0, 0.0, 1)
    for volume in volumes:
        total = total.plus(volume) if volume.devices > 1 else total
    return {kind: total} if total.count else {}


def _weights(spec: ModelConfig) -> tuple[float, float]:
    """Returns the weights of a block, and those of them that a token goes through."""
    block = used = 0.0
    for path, leaf in jax.tree_util.tree_flatten_with_path(abstract(spec)[1]["blocks"])[0]:
        size = math.prod(leaf.shape[1:])
        experts = spec.experts and leaf.ndim > 3 and "router" not in jax.tree_util.keystr(path)
        block += size
        used += size * spec.experts_per_token / spec.experts if experts else size
    return block, used
