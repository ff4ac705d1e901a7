"""The sparse step from formulas, as it is on TPUs and GPUs: the encoder's product is never held."""

import math

import jax.numpy as jnp

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.estimate.chips import Chip
from jaxdiff.estimate.costs import Costs
from jaxdiff.estimate.programs import precision
from jaxdiff.estimate.rings import all_gather, all_reduce, summed
from jaxdiff.kernels.row_adam.tpu import BLOCK
from jaxdiff.training.penalised_step import PART, slots_of

# How often the row of an entry is fetched: for its value as a candidate and when it is selected,
# to decode, for its slope, and for the gradients' norm and update of both tables.
_FETCHES = 8
# Three of these are scalar products, which fetch a row of the table as well, once for a latent.
_DOTS = 3
# Bytes that selection moves for each slot of the list: most of it in counts of the candidates.
_SLOT = 600
# Passes over bit maps of all scores, over what is as large as the reconstruction, and, where a
# penalty leaves so many active that no list holds them, over arrays of scores, in parts.
_MAPS, _PASSES, _ARRAYS = 8, 8, 16
# Rows and latents of a tile whose product stays on a TPU's chip; scores of a chunk on GPUs, and
# of one where AuxK cuts rows, or topk.
_ROWS, _LANES, _CHUNK, _SMALL = 2048, 1024, 2**26, 2**24


def sparse_costs(
    dictionary: DictionaryConfig,
    train: TrainConfig,
    shape: tuple[int, int],
    stored: int,
    sizes: tuple[int, int],
    chip: Chip,
) -> Costs:
    """Returns the costs of the sparse step; of its memory, what is there while it runs.

    AuxK's operations are left out: dead latents are few, or nothing is known of them.

    Latents are split over all devices, and each sees the whole batch of B rows. One product of
    `2 B W L` operations is left, the encoder's, of which a bit for each score remains. All else
    follows the k B selected entries, of which a device has its share: scalar products, decode and
    gradients take `2 W` operations for each and fetch a row for it. Lists have a slot for all
    entries on every device, since all may be one's own. Where a penalty decides how many entries
    there are, k for each row are assumed.

    Args:
        dictionary: Settings of the dictionary.
        train: Settings of training.
        shape: (S, D) of the activations; W is their product.
        stored: Bytes of a number of them.
        sizes: Devices along `data` and `latent`.
        chip: The devices' chip.
    """
    devices, width = math.prod(sizes), math.prod(shape)
    rows, latents = float(train.batch), dictionary.latents / devices
    scores, reconstruction = rows * latents, rows * width * 4
    entries = dictionary.k * rows / devices
    if dictionary.penalised:
        slots = float(slots_of(train.batch, dictionary.latents // devices))
    else:
        slots = max(dictionary.k, dictionary.k_start or 0) * rows
    touched = min(entries, latents)
    item, moment = jnp.dtype(train.dtype).itemsize, jnp.dtype(train.moment_dtype).itemsize
    held, read = _encoder(train, width, rows, latents, chip)
    if entries > slots:
        # No list holds them: six products, part by part, after the one that counts.
        flops, moved = 14 * scores * width, latents
        followed = 12 * item * width * latents + _ARRAYS * 4 * scores
    else:
        # The pull of a penalty asks for slopes by model.
        fetches = _FETCHES + (shape[0] - 1 if dictionary.penalised else 0)
        flops = 2 * width * (scores + fetches * entries)
        # All but decode fetch rows of the batch, which GPUs keep in the second-level cache.
        fetches = 1 if chip.gpu else fetches
        followed = 4 * width * (fetches * entries + _DOTS * touched) + _SLOT * slots
        # On TPUs blocks of rows pass through the chip, of which one is touched.
        moved = touched if chip.gpu else latents * (1 - (1 - touched / latents) ** BLOCK)
    return Costs(
        memory={
            "temporaries": max(
                # While entries are selected, and afterwards.
                held + reconstruction + scores / 2 + 60 * slots,
                reconstruction * (6.5 + item / 4) + _arrays(dictionary, scores, latents, width),
            )
        },
        flops=flops,
        bytes=read
        + followed
        + 2 * moved * 2 * width * (4 + moment)
        + _MAPS * scores / 8
        + _PASSES * reconstruction,
        tokens=train.batch,
        precision=precision(train),
        collectives=summed("all-reduce", [all_reduce(1, reconstruction, devices)])
        | summed("all-gather", [all_gather(1, rows * width * stored, sizes[0])]),
    )


def _arrays(dictionary: DictionaryConfig, scores: float, latents: float, width: int) -> float:
    """Returns the bytes of float arrays of scores and gradients that a branch holds."""
    if dictionary.penalised:
        # Taken until active entries are few: scores, values and slopes of a part of the latents,
        # and gradients of all.
        return 4 * 4 * min(scores, PART) + 4 * 2 * latents * width
    chunked = dictionary.aux > 0 or dictionary.activation == "topk"
    return 4 * min(scores, _SMALL) if chunked else 0.0


def _encoder(
    train: TrainConfig, width: int, rows: float, latents: float, chip: Chip
) -> tuple[float, float]:
    """Returns bytes that the encoder's product holds beside its operands, and those it moves."""
    item = jnp.dtype(train.dtype).itemsize
    x, weights, scores = rows * width * item, latents * width, rows * latents * 4
    if not chip.gpu:
        # Rows are read for each tile of latents, weights for each tile of rows.
        tall = _ROWS * 2 // item
        return x, x * math.ceil(latents / _LANES) + 4 * weights * math.ceil(rows / tall)
    chunk = min(scores, 4 * _CHUNK)
    rounded = weights * item if item < 4 else 0.0
    # Weights are rounded once and read for each chunk, whose scores are written and read.
    moved = x + (4 + item) * weights + item * weights * math.ceil(scores / chunk) + 2 * scores
    return x + rounded + chunk, moved
