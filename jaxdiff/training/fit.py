"""Training in memory."""

import functools
from collections.abc import Iterable

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.training.state import init_state
from jaxdiff.training.step import train_step


def fit(
    config: DictionaryConfig,
    train: TrainConfig,
    batches: Iterable[Float[Array, "B M D"]],
    *,
    seed: int,
) -> tuple[Dictionary, list[dict]]:
    """Trains on an iterator of normalised batches; returns the dictionary and its history."""
    step = jax.jit(
        functools.partial(train_step, config=config, train=train), donate_argnames="state"
    )
    start = jax.jit(functools.partial(init_state, config, train))
    state, history, waiting = None, [], None
    for done, x in zip(range(train.steps), batches, strict=False):
        if state is None:
            state = start(x, key=jax.random.key(seed))
        state, info = step(state, x)
        if waiting is not None:
            history.append(_read(*waiting))
            waiting = None
        if done % train.log_every == 0 or done == train.steps - 1:
            waiting = done, info
    if waiting is not None:
        history.append(_read(*waiting))
    assert state is not None
    return state.params, history


def _read(step, info):
    info = jax.device_get(info)._asdict()
    return {"step": step} | {k: np.asarray(v).tolist() for k, v in info.items()}
