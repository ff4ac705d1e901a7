"""The dense step from formulas."""

import jax.numpy as jnp

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.estimate.costs import Costs
from jaxdiff.estimate.programs import precision
from jaxdiff.estimate.rings import all_reduce, summed

# Passes over the scores: products, rectifier, keys, selection, mask and their gradients.
_PASSES = 14
# Bytes that Adam moves for each parameter: gradient written, read for its norm and for the update;
# parameter and both moments read and written; the parameter read by five products.
_UPDATE = 12 + 24
_READS = 5


def dense_costs(
    dictionary: DictionaryConfig,
    train: TrainConfig,
    shape: tuple[int, int],
    sizes: tuple[int, int],
    parameters: float,
) -> Costs:
    """Returns the costs of the dense step; of its memory, what is there while it runs.

    With B rows, R coordinates read, W written and L latents, it does two products of `2 B R L`
    operations, the encoder's and its gradient's, and three of `2 B W L`: decode, and the gradients
    of codes and decoder; AuxK adds another three, what gates decode to two. Each reconstruction,
    of prefixes too, is summed over `latent`, gradients over `data`.

    Args:
        dictionary: Settings of the dictionary.
        train: Settings of training.
        shape: (S, D) of the activations.
        sizes: Devices along `data` and `latent`.
        parameters: Parameters of a device [numbers].
    """
    (sources, width), (data, latent) = shape, sizes
    rows, latents = train.batch / data, dictionary.latents / latent
    read = width * len(dictionary.reads or range(sources))
    models = len(dictionary.writes or range(sources))
    written = width * models
    revived = not dictionary.penalised and dictionary.aux > 0
    gated = dictionary.activation == "gated"
    decoded, item = 3 + 3 * revived + 2 * gated, jnp.dtype(train.dtype).itemsize
    guesses = 1 + revived + gated + len(dictionary.prefixes)
    rounded = item if item < 4 else 0
    codes = models if dictionary.code_norm == "decoupled" else 1
    scores, reconstruction = rows * latents * codes * 4, rows * written * 4
    skip = 2 * read * written if dictionary.skip else 0
    sums = [
        all_reduce(guesses, guesses * reconstruction, latent),
        all_reduce(4, 4 * parameters, data),
    ]
    return Costs(
        memory={
            # Gradients, parameters rounded for the products, scores, and what is as large as x.
            "temporaries": (4 + rounded) * parameters + 4 * scores + 3 * reconstruction,
        },
        flops=2.0 * rows * (latents * (2 * read + decoded * written) + skip),
        bytes=parameters * (_UPDATE + _READS * item)
        + _PASSES * scores
        + 2 * (2 + decoded) * reconstruction,
        tokens=train.batch,
        precision=precision(train),
        collectives=summed("all-reduce", sums),
    )
