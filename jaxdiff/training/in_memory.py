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
from jaxdiff.training.break_even import faster_step
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
        train: Settings of training; those of checkpoints are not used.
        batches: At least `train.steps` normalised batches.
        seed: Seed of the initial directions, unless the config has one.

    Returns:
        The dictionary, its threshold not yet calibrated, and the logged metrics.

    Raises:
        JaxdiffError: If there is no batch, the first one has another size than `train.batch`, or
            one is not finite and such are not skipped.
    """
    mesh, lines = make_mesh(1, 1), []
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise JaxdiffError("there is no batch to train on", where="batches")
    rows, models, width = first.shape
    if rows != train.batch:
        raise JaxdiffError(
            f"a batch has {rows} rows, train.batch is {train.batch}",
            where="batches",
            fix=f"give batches of {train.batch} rows, or set train.batch to {rows}",
        )
    shape, same = (models, width), Normalization.identity((models, width))
    train = train.model_copy(update={"step": faster_step(config, train, shape, mesh)})
    start, like = compile_init(config, train, shape, mesh)
    step = compile_step(config, train, like, mesh)
    state = None
    for done, x in enumerate(itertools.islice(itertools.chain([first], rest), train.steps), 1):
        x = np.asarray(x, np.float32)
        if not np.isfinite(x).all():
            if train.bad_batch == "skip":
                continue
            raise JaxdiffError(f"batch {done} has values that are not finite", where="batches")
        x = put(x, mesh)
        if state is None:
            own = seed if config.seed is None else config.seed
            state = start(x, same, key=jax.random.key(own))
        state, info = step(state, x, same)
        if done % train.log_every == 0 or done == train.steps:
            lines.append((done, done * train.batch, info))
    if state is None:
        raise JaxdiffError("no batch is finite", where="batches")
    return trained(state, config, shape, mesh), [history.record(*line) for line in lines]
