"""What training carries from step to step."""

import dataclasses
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.constraints import release
from jaxdiff.dictionaries.dictionary import Dictionary, written_by
from jaxdiff.dictionaries.initial import init
from jaxdiff.training.median import geometric_median
from jaxdiff.training.sparsity import L1State, init_l1


class TrainState(NamedTuple):
    """State of training; all of it is in a checkpoint.

    Attributes:
        params: The dictionary, as `dictionaries.constraints.release` has it.
        optimizer: Adam's moments and counts.
        step: Steps done [steps].
        idle: Tokens since each latent was last active [tokens].
        l1: L1 weight and its controller.
    """

    params: Dictionary
    optimizer: Any
    step: Int[Array, ""]
    idle: Int[Array, " L"]
    l1: L1State


def make_optimizer(config: DictionaryConfig, train: TrainConfig) -> optax.GradientTransformation:
    """Returns Adam with clipping, linear warm-up and, if asked for, linear decay to 0."""
    parts = [
        optax.clip_by_global_norm(train.clip) if train.clip else optax.identity(),
        optax.adam(learning_rate(config, train), b1=train.beta1),
    ]
    return optax.chain(*parts)


def init_state(
    config: DictionaryConfig,
    train: TrainConfig,
    x: Float[Array, "B M D"],
    *,
    key: PRNGKeyArray,
) -> TrainState:
    """Returns the state at step 0; the first (normalised) batch gives the decoder bias."""
    _, sources, width = x.shape
    d = init(config, (sources, width), key=key)
    if config.median_bias:
        d = dataclasses.replace(d, b_dec=geometric_median(written_by(d, x)))
    params = release(d, config)
    return TrainState(
        params=params,
        optimizer=make_optimizer(config, train).init(cast(Any, params)),
        step=jnp.int32(0),
        idle=jnp.zeros(config.latents, jnp.int32),
        l1=init_l1(config),
    )


def learning_rate(config: DictionaryConfig, train: TrainConfig) -> optax.Schedule:
    """Returns the rate of a step, counted from 0: warm-up, plateau and, if asked for, decay."""
    peak = train.lr or 2e-4 / (config.latents / 2**14) ** 0.5

    def rate(count):
        done = count.astype(jnp.float32)
        factor = jnp.minimum((done + 1) / train.warmup, 1.0) if train.warmup else jnp.float32(1)
        if train.decay_from is not None:
            start = train.decay_from * train.steps
            factor = factor * jnp.clip((train.steps - done) / (train.steps - start), 0.0, 1.0)
        return peak * factor

    return rate
