"""Training of the small language models that organisms are made of."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff import models
from jaxdiff.descent import updated
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
class Planted:
    """Concepts whose strength in a model is to differ from that in a base by known amounts.

    A concept is a direction in the residual stream; its strength at a token is the projection on
    it. With p the base's projection and p0 the mean one where the concept is absent, the model's
    is to be p0 + gain (p - p0) + strength [label of the token is the concept's].

    Attributes:
        labels: Label of each concept [C].
        directions: Unit vectors [C, D].
        absent: The base's mean projection where the concept is absent [C].
        spread: Standard deviation of the base's projections [C].
        gains: Factor on what the base has [C]; 1 leaves it.
        strengths: What is added where the concept is active [C]; 0 for concepts of the base.
    """

    labels: Int[Array, " C"]
    directions: Float[Array, "C D"]
    absent: Float[Array, " C"]
    spread: Float[Array, " C"]
    gains: Float[Array, " C"]
    strengths: Float[Array, " C"]

    def distance(
        self,
        x: Float[Array, "B T D"],
        base: Float[Array, "B T D"],
        labels: Int[Array, "B T"],
    ) -> Float[Array, "B T"]:
        """Returns the squared distance from the wanted projections, in units of the spread."""
        mine, its = (h @ self.directions.T for h in (x, base))
        active = labels[..., None] == self.labels[None, None]
        absent, gains = self.absent[None, None], self.gains[None, None]
        added = jnp.where(active, self.strengths[None, None], 0.0)
        wanted = absent + gains * (its - absent) + added
        return jnp.sum(((mine - wanted) / self.spread[None, None]) ** 2, axis=-1)


def train(
    lm: LM,
    batches: Iterable[TokenBatch],
    phase: Phase,
    *,
    title: str,
    base: LM | None = None,
    planted: Planted | None = None,
    site: str = "",
) -> LM:
    """Trains a language model on next-token prediction.

    With `planted`, the distance from the wanted strengths of its concepts is added to the loss.

    Args:
        lm: Model to start from.
        batches: Batches of one shape, at least `phase.steps`.
        phase: Steps and learning rate.
        title: What the progress bar says.
        base: Frozen model that the strengths are relative to.
        planted: Concepts and their wanted strengths.
        site: Where the strengths are measured.

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
    def step(lm, opt_state, batch, base, planted):
        value, grads = jax.value_and_grad(_loss)(lm, batch, base, planted, site)
        params, opt_state = updated(optimizer, grads.params, opt_state, lm.params)
        return dataclasses.replace(lm, params=params), opt_state, value

    lm = jax.tree.map(jnp.copy, lm)
    opt_state = optimizer.init(lm.params)
    with progress(title, phase.steps, "steps") as advance:
        for i, batch in zip(range(phase.steps), batches, strict=False):
            lm, opt_state, value = step(lm, opt_state, batch, base, planted)
            advance(1, f"loss {value:.3f}" if i % 20 == 0 else "")
    return lm


def next_token_loss(
    logits: Float[Array, "B T V"], tokens: Int[Array, "B T"], sequences: Int[Array, "B T"]
) -> Float[Array, ""]:
    """Returns the mean cross-entropy [nats per token] of next tokens of the same document."""
    real = (sequences[:, 1:] == sequences[:, :-1]) & (sequences[:, 1:] >= 0)
    each = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    return _mean(each, real)


def plant(
    base: LM,
    batches: Iterable[TokenBatch],
    site: str,
    *,
    gains: Mapping[int, float],
    new: Sequence[int],
    strength: float,
    key: Key[Array, ""],
) -> Planted:
    """Decides where concepts are planted, from what a base model has at a site.

    A concept of the base has the direction in which its tokens differ from all others on average.
    A new concept gets a random direction, orthogonal to the other new ones.

    Args:
        base: The base model.
        batches: Labelled text.
        site: Where to plant.
        gains: Factor for each concept of the base, by label.
        new: Labels of the concepts that the base does not have.
        strength: Strength of new concepts, as a part of the root mean square norm of the base's
            activations about their mean [fraction].
        key: Decides the random directions.

    Returns:
        The concepts.
    """
    x, labels = _activations(base, batches, site)
    others = x[~np.isin(labels, list(gains))]
    known = np.stack([x[labels == c].mean(0) - others.mean(0) for c in gains])
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    random = np.asarray(jax.random.orthogonal(key, x.shape[1]))[: len(new)]
    directions = np.concatenate([known, random])
    size = strength * np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean())
    return Planted(
        labels=jnp.asarray([*gains, *new]),
        directions=jnp.asarray(directions),
        absent=jnp.asarray((others @ directions.T).mean(0)),
        spread=jnp.asarray((x @ directions.T).std(0)),
        gains=jnp.asarray([*gains.values(), *[1.0] * len(new)]),
        strengths=jnp.asarray([*[0.0] * len(gains), *[size] * len(new)], jnp.float32),
    )


def _activations(
    lm: LM, batches: Iterable[TokenBatch], site: str
) -> tuple[Float[np.ndarray, "R D"], Int[np.ndarray, " R"]]:
    run = jax.jit(models.run, static_argnames=("taps", "logits"))
    rows, labels = [], []
    for batch in batches:
        sequences = np.asarray(batch.sequences)
        _, found = run(
            lm,
            jnp.asarray(batch.tokens),
            (site,),
            sequences=jnp.asarray(sequences),
            logits=False,
        )
        rows.append(np.asarray(found[site], np.float32)[sequences >= 0])
        labels.append(np.asarray(batch.labels)[sequences >= 0])
    return np.concatenate(rows), np.concatenate(labels)


def _loss(
    lm: LM, batch: TokenBatch, base: LM | None, planted: Planted | None, site: str
) -> Float[Array, ""]:
    tokens, sequences = jnp.asarray(batch.tokens), jnp.asarray(batch.sequences)
    taps = () if planted is None else (site,)
    logits, found = models.run(lm, tokens, taps, sequences=sequences)
    assert logits is not None
    loss = next_token_loss(logits, tokens, sequences)
    if planted is None or base is None:
        return loss
    _, before = models.run(base, tokens, taps, sequences=sequences, logits=False)
    distance = planted.distance(found[site], before[site], jnp.asarray(batch.labels))
    return loss + _mean(distance, sequences >= 0)


def _mean(values: Float[Array, "B T"], where: Bool[Array, "B T"]) -> Float[Array, ""]:
    count = jnp.maximum(jnp.sum(where), 1).astype(values.dtype)
    return jnp.sum(jnp.where(where, values, 0.0)) / count
