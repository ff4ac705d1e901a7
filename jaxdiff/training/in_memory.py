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


class EndedEarly(JaxdiffError):
    """There were fewer batches than steps; what was trained is kept here.

    Attributes:
        dictionary: As `fit` would return it, after the last batch.
        history: Logged metrics.
    """

    def __init__(self, done: int, steps: int, dictionary: Dictionary, history: list):
        super().__init__(
            f"the batches ended after {done} of {steps} steps",
            where="batches",
            fix="give more batches or lower train.steps; what was trained is in the error's "
            "`dictionary`",
        )
        self.dictionary = dictionary
        self.history = history


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
        EndedEarly: If there are fewer batches than steps; it has the dictionary.
        JaxdiffError: If there is no batch, one has another shape than the first one or another
            size than `train.batch`, or one is not finite and such are not skipped.
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
    state, info, done, skipped = None, None, 0, 0
    for done, x in enumerate(itertools.islice(itertools.chain([first], rest), train.steps), 1):
        x = np.asarray(x, np.float32)
        if x.shape != first.shape:
            raise JaxdiffError(
                f"batch {done} is {list(x.shape)}, the first one is {list(first.shape)}",
                where="batches",
                fix="give batches of one size; leave the last rows out where they are fewer",
            )
        if np.isfinite(x).all():
            x = put(x, mesh)
            if state is None:
                own = seed if config.seed is None else config.seed
                state = start(x, same, key=jax.random.key(own))
            state, info = step(state, x, same)
        elif train.bad_batch == "skip":
            skipped += 1
        else:
            raise JaxdiffError(f"batch {done} has values that are not finite", where="batches")
        if info is not None and (done % train.log_every == 0 or done == train.steps):
            lines.append((done, (done - skipped) * train.batch, info))
    if state is None:
        raise JaxdiffError("no batch is finite", where="batches")
    found = trained(state, config, shape, mesh), [history.record(*line) for line in lines]
    if done < train.steps:
        raise EndedEarly(done, train.steps, *found)
    return found
