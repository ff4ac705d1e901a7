"""Training on arrays that are at hand, without a folder: for notebooks and quick trials."""

import itertools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxdiff.activations.normalization import Normalization
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh
from jaxdiff.training import history
from jaxdiff.training.compiled import compile_init, compile_step, put, trained
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
    mesh, step, state, lines = make_mesh(1, 1), None, None, []
    for done, x in enumerate(itertools.islice(batches, train.steps), 1):
        x = put(np.asarray(x, np.float32), mesh)
        shape = x.shape[1:]
        same = Normalization.identity(shape)
        if step is None or state is None:
            start, like = compile_init(config, train, shape, mesh)
            step = compile_step(config, train, like, mesh)
            state = start(x, same, key=jax.random.key(seed))
        state, info = step(state, x, same)
        if done % train.log_every == 0 or done == train.steps:
            lines.append((done, done * train.batch, info))
    if state is None:
        raise JaxdiffError("there is no batch to train on", where="batches")
    return trained(state, config, shape, mesh), [history.record(*line) for line in lines]
