"""How sparsity moves during training: k annealing, and the L1 weight that leads to a given L0."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.config import DictionaryConfig, TrainConfig

# The controller looks at L0 through an average over this many steps.
_SMOOTHING = 20
# Part of training after which the weight is held, so that what is returned is the optimum of one
# fixed objective.
_HOLD_FROM = 0.9


class L1State(NamedTuple):
    """State of the L1 weight.

    Attributes:
        log_weight: Natural logarithm of the weight.
        log_l0: Running mean of log(L0).
    """

    log_weight: Float[Array, ""]
    log_l0: Float[Array, ""]


def annealed_k(config: DictionaryConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """Returns k at a step: linear from `k_start` to `k` over `k_anneal` steps."""
    if config.k_start is None or config.k_anneal == 0:
        return jnp.float32(config.k)
    part = jnp.minimum(step.astype(jnp.float32) / config.k_anneal, 1.0)
    return config.k_start + (config.k - config.k_start) * part


def init_l1(config: DictionaryConfig) -> L1State:
    """Returns the state at step 0."""
    weight = jnp.log(jnp.float32(max(config.l1, 1e-30)))
    return L1State(weight, jnp.log(jnp.float32(config.latents / 2)))


def l1_weight(config: DictionaryConfig, state: L1State, step: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the weight of the sparsity penalty at a step, counted from 0."""
    weight = jnp.exp(state.log_weight)
    if config.l1_warmup == 0:
        return weight
    return weight * jnp.minimum(step.astype(jnp.float32) / config.l1_warmup, 1.0)


def update_l1(
    state: L1State,
    l0: Float[Array, ""],
    step: Int[Array, ""],
    *,
    config: DictionaryConfig,
    train: TrainConfig,
) -> L1State:
    """Moves the L1 weight so that L0 approaches k (`match_l0`), or keeps it.

    A proportional and derivative controller acts on the logarithm of the weight. With e the
    smoothed log(L0 / k) and e' its change in a step,

        log w += (clip(e, -1, 1) + T e') / T,   T = steps / 40.

    The second term answers a falling L0 before it has arrived, since L0 follows the weight only
    slowly; without it the weight of an untrained dictionary overshoots and kills latents for good.
    It starts after the warm-up, and the weight is held for the last tenth of training.
    """
    if not config.match_l0:
        return state
    log_l0 = state.log_l0 + (jnp.log(jnp.maximum(l0, 1e-3)) - state.log_l0) / _SMOOTHING
    error = log_l0 - jnp.log(jnp.float32(config.k))
    time = max(train.steps / 40, 1.0)
    move = jnp.clip(error, -1.0, 1.0) / time + (log_l0 - state.log_l0)
    acts = (step >= train.warmup) & (step < round(_HOLD_FROM * train.steps))
    return L1State(state.log_weight + jnp.where(acts, move, 0.0), log_l0)
