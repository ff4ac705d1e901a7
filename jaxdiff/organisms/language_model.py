"""Training of the small language models that organisms are made of."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxdiff import models
from jaxdiff.models import LM
from jaxdiff.progress import progress
from jaxdiff.types import TokenBatch


@dataclass(frozen=True)
class Phase:
    """One phase of training.

    Attributes:
        steps: Optimizer steps [steps].
        lr: Peak learning rate of AdamW; falls to a tenth along a cosine.
        warmup: Linear warm-up [steps].
        weight_decay: Decoupled weight decay.
    """

    steps: int
    lr: float
    warmup: int = 50
    weight_decay: float = 0.01


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gains:
    """Concepts whose strength in a model is to differ from that in a base by known factors.

    A concept is a direction in the residual stream; its strength at a token is the projection on
    it, measured from the projection where the concept is absent.

    Attributes:
        directions: Unit vectors [C, D].
        centres: Projections where the concept is absent [C].
        spread: Standard deviation of the base's projections [C].
        gains: Wanted strength relative to the base [C].
    """

    directions: Float[Array, "C D"]
    centres: Float[Array, " C"]
    spread: Float[Array, " C"]
    gains: Float[Array, " C"]


def train(
    lm: LM,
    batches: Iterable[TokenBatch],
    phase: Phase,
    *,
    title: str,
    base: LM | None = None,
    gains: Gains | None = None,
    site: str = "",
) -> LM:
    """Trains a language model on next-token prediction; the input's buffers are given up.

    With `gains`, the squared distance between the concepts' strengths in the model and the wanted
    multiple of those in `base` is added to the loss, in units of the base's spread.

    Args:
        lm: Model to start from.
        batches: Batches of one shape, at least `phase.steps`.
        phase: Steps and learning rate.
        title: What the progress bar says.
        base: Frozen model that gains are relative to.
        gains: Concepts and their factors.
        site: Where the concepts are measured.

    Returns:
        The trained model.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, phase.lr, phase.warmup, phase.steps, phase.lr / 10
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=phase.weight_decay)
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(lm, opt_state, batch, base, gains):
        value, grads = jax.value_and_grad(_loss)(lm, batch, base, gains, site)
        updates, opt_state = optimizer.update(grads, opt_state, lm)
        return optax.apply_updates(lm, updates), opt_state, value

    lm = jax.tree.map(jnp.copy, lm)
    opt_state = optimizer.init(lm)
    with progress(title, phase.steps, "steps") as advance:
        for i, batch in zip(range(phase.steps), batches, strict=False):
            lm, opt_state, value = step(lm, opt_state, batch, base, gains)
            advance(1, f"loss {value:.3f}" if i % 20 == 0 else "")
    return lm


def next_token_loss(
    logits: Float[Array, "B T V"], tokens: Int[Array, "B T"], sequences: Int[Array, "B T"]
) -> Float[Array, ""]:
    """Returns the mean cross-entropy [nats per token] of next tokens of the same document."""
    real = (sequences[:, 1:] == sequences[:, :-1]) & (sequences[:, 1:] >= 0)
    each = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    return jnp.sum(each * real) / jnp.maximum(jnp.sum(real), 1)


def measure_gains(
    base: LM,
    batches: Iterable[TokenBatch],
    concepts: dict[int, float],
    site: str,
) -> Gains:
    """Finds the directions of labelled concepts in a base model by difference of means.

    Args:
        base: The base model.
        batches: Labelled text.
        concepts: Wanted gain by label.
        site: Where to measure.

    Returns:
        The concepts, with the gains as given.
    """
    run = jax.jit(models.run, static_argnames=("taps", "logits"))
    rows, labels = [], []
    for batch in batches:
        taps = run(base, batch.tokens, (site,), sequences=batch.sequences, logits=False)[1]
        real = batch.sequences >= 0
        rows.append(jax.device_get(taps[site])[real])
        labels.append(batch.labels[real])
    x = jnp.asarray(jnp.concatenate(rows), jnp.float32)
    label = jnp.concatenate(labels)
    others = x[~jnp.isin(label, jnp.asarray(list(concepts)))]
    directions = jnp.stack([x[label == c].mean(0) - others.mean(0) for c in concepts])
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    centres = (others @ directions.T).mean(0)
    return Gains(
        directions, centres, (x @ directions.T).std(0), jnp.asarray(list(concepts.values()))
    )


def _loss(lm, batch, base, gains, site) -> Float[Array, ""]:
    tokens, sequences = jnp.asarray(batch.tokens), jnp.asarray(batch.sequences)
    taps = () if gains is None else (site,)
    logits, read = models.run(lm, tokens, taps, sequences=sequences)
    assert logits is not None
    loss = next_token_loss(logits, tokens, sequences)
    if gains is None:
        return loss
    before = models.run(base, tokens, taps, sequences=sequences, logits=False)[1][site]
    mine, its = (x @ gains.directions.T - gains.centres for x in (read[site], before))
    error = (mine - gains.gains * its) / gains.spread
    real = (sequences >= 0)[..., None]
    return loss + jnp.sum(error**2 * real) / jnp.maximum(jnp.sum(real), 1)
