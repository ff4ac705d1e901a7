"""The costs of training from formulas, where no compiler for the hardware is at hand.

The state is that of the real program, which needs no compiler to be known.
"""

import dataclasses
import math

import jax.numpy as jnp
from jax.sharding import AbstractMesh

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.estimate.chips import Chip
from jaxdiff.estimate.costs import FEED, Costs
from jaxdiff.estimate.dense_step import dense_costs
from jaxdiff.estimate.programs import state_memory
from jaxdiff.estimate.sparse_step import sparse_costs
from jaxdiff.mesh import DATA, LATENT
from jaxdiff.training.compiled import compile_init
from jaxdiff.training.rows import RowState


def train_costs(
    dictionary: DictionaryConfig,
    train: TrainConfig,
    shape: tuple[int, int],
    dtype: str,
    sizes: tuple[int, int],
    chip: Chip,
) -> Costs:
    """Returns what a step of training asks of one of `data * latent` devices.

    Args:
        dictionary: Settings of the dictionary.
        train: Settings of training; with `auto`, the sparse step where it can be taken.
        shape: (S, D) of the activations.
        dtype: Their dtype as stored.
        sizes: Devices along `data` and `latent`.
        chip: The devices' chip.
    """
    _, like = compile_init(dictionary, train, shape, AbstractMesh(sizes, (DATA, LATENT)))
    state, item = state_memory(like), jnp.dtype(dtype).itemsize
    batch = train.batch / sizes[0] * math.prod(shape) * item
    if isinstance(like, RowState):
        costs = sparse_costs(dictionary, train, shape, item, sizes, chip)
    else:
        costs = dense_costs(dictionary, train, shape, sizes, state["parameters"] / 4)
    memory = state | {"inputs": batch, FEED: batch} | dict(costs.memory)
    return dataclasses.replace(costs, memory=memory)
