"""One training step, as a pure function."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.descent import updated
from jaxdiff.dictionaries.loss import Parts, loss
from jaxdiff.training.sparsity import annealed_k, l1_weight, update_l1
from jaxdiff.training.state import TrainState, make_optimizer

# Idle counters stop here, far above any dead window, instead of overflowing.
_LONGEST_IDLE = 2**30


class Info(NamedTuple):
    """What is logged about a step; scalars unless a shape is given.

    Attributes:
        loss: Loss.
        reconstruction: Reconstruction term.
        sparsity: Sum over latents of value times code norm, mean over rows.
        aux: AuxK term, not weighted.
        l0: Active latents per row in training's own selection.
        fve: Fraction of variance explained in the batch, by model, [M].
        fve_all: The same over all models.
        dead: Part of the latents not active for `dead_after` tokens.
        gradient_norm: Global norm of the gradient before clipping.
        k: k of the step.
        l1: L1 weight of the step.
        passes: Passes over all scores that the sparse step took, 0 where products with all latents
            were taken. batch_topk: 1 where the last step's threshold was a good guess; topk: 2, or
            3 where a row had many candidates; relu and jumprelu: 1.
        bad: True where the batch had values that are not finite.
    """

    loss: Float[Array, ""]
    reconstruction: Float[Array, ""]
    sparsity: Float[Array, ""]
    aux: Float[Array, ""]
    l0: Float[Array, ""]
    fve: Float[Array, " M"]
    fve_all: Float[Array, ""]
    dead: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    k: Float[Array, ""]
    l1: Float[Array, ""]
    passes: Int[Array, ""]
    bad: Bool[Array, ""]


def train_step(
    state: TrainState,
    x: Float[Array, "B M D"],
    *,
    config: DictionaryConfig,
    train: TrainConfig,
) -> tuple[TrainState, Info]:
    """Does one optimizer step on a normalised batch."""
    k = annealed_k(config, state.step)
    l1 = l1_weight(config, state.l1, state.step)
    dtype = jnp.dtype(train.dtype)
    objective = jax.value_and_grad(loss, has_aux=True)
    (_, parts), gradient = objective(
        state.params, x, config=config, k=k, l1=l1, idle=state.idle, dtype=dtype
    )
    params, optimizer = updated(
        make_optimizer(config, train), gradient, state.optimizer, state.params
    )
    idle = idle_after(state.idle, parts.fired, x.shape[0])
    new = TrainState(
        params=params,
        optimizer=optimizer,
        step=state.step + 1,
        idle=idle,
        l1=update_l1(state.l1, parts.l0, state.step, config=config, train=train),
    )
    dead = jnp.sum(idle >= config.dead_after, dtype=jnp.int32)
    return new, summarize(parts, dead, optax.tree.norm(gradient), k, l1, config)


def idle_after(idle: Int[Array, " L"], fired: Bool[Array, " L"], tokens: int) -> Int[Array, " L"]:
    """Returns the tokens since each latent was last active, after `tokens` more."""
    return jnp.where(fired, 0, jnp.minimum(idle + tokens, _LONGEST_IDLE))


def summarize(
    parts: Parts,
    dead: Int[Array, ""],
    gradient_norm: Float[Array, ""],
    k: Float[Array, ""],
    l1: Float[Array, ""],
    config: DictionaryConfig,
    passes: Int[Array, ""] | None = None,
) -> Info:
    """Returns what is logged; `dead` counts latents, `passes` is None in the dense step."""
    return Info(
        loss=parts.loss,
        reconstruction=parts.reconstruction,
        sparsity=parts.sparsity,
        aux=parts.aux,
        l0=parts.l0,
        fve=1 - parts.residual / parts.total,
        fve_all=1 - jnp.sum(parts.residual) / jnp.sum(parts.total),
        dead=dead.astype(jnp.float32) / config.latents,
        gradient_norm=gradient_norm,
        k=k,
        l1=l1,
        passes=jnp.int32(0) if passes is None else passes,
        bad=jnp.bool_(False),
    )
