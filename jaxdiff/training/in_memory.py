"""Training on arrays that are at hand, without a folder: for notebooks and quick trials."""

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.errors import JaxdiffError
from jaxdiff.training import history
from jaxdiff.training.state import init_state
from jaxdiff.training.step import train_step
from jaxdiff.types import HostOrDevice


def fit(
    config: DictionaryConfig,
    train: TrainConfig,
    batches: Iterable[Float[HostOrDevice, "B M D"]],
    *,
    seed: int,
) -> tuple[Dictionary, list[dict[str, Any]]]:
    """Trains on normalised batches on one device; `train` does the same with a folder behind it.

    Args:
        config: Settings of the dictionary.
        train: Settings of training; `checkpoint_every` is not used.
        batches: At least `train.steps` normalised batches.
        seed: Seed of the initial directions.

    Returns:
        The dictionary, its threshold not yet calibrated, and the logged metrics.

    Raises:
        JaxdiffError: If there is no batch.
    """
    start = jax.jit(functools.partial(init_state, config, train))
    step = jax.jit(
        functools.partial(train_step, config=config, train=train), donate_argnames="state"
    )
    state, lines = None, []
    for done, x in enumerate(itertools.islice(batches, train.steps), 1):
        x = jnp.asarray(x, jnp.float32)
        if state is None:
            state = start(x, key=jax.random.key(seed))
        state, info = step(state, x)
        if done % train.log_every == 0 or done == train.steps:
            lines.append((done, done * train.batch, info))
    if state is None:
        raise JaxdiffError("there is no batch to train on", where="batches")
    return state.params, [history.record(*line) for line in lines]
