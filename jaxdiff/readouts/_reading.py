"""What is kept of logits: a few tokens and numbers in place of the whole vocabulary."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import ModelConfig
from jaxdiff.readouts.metrics import divergence, entropy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reading:
    """What logits say. All arrays have the axes that were read in front; floats are float32.

    Attributes:
        tokens: The k likeliest tokens, `[..., k]`.
        probabilities: Their probabilities, `[..., k]`.
        entropy: Entropy of the whole distribution [nats].
        log_prob: Log-probability of the targets [nats]; with a last axis K if they had one. None
            without targets.
        rank: How many tokens are likelier than each target: 0 is the likeliest.
        kl: `KL(reference || here)` [nats]; None without a reference.
        logits: The logits, `[..., V]`, where they were asked for.
    """

    tokens: Any
    probabilities: Any
    entropy: Any
    log_prob: Any = None
    rank: Any = None
    kl: Any = None
    logits: Any = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reader:
    """Makes a `Reading` of logits: a metric for `causal.sweep`.

    Attributes:
        targets: Token ids that broadcast to the axes before V, with an axis K of several more if
            they have one dimension more.
        reference: Logits that broadcast to those that are read.
        k: How many of the likeliest tokens are kept.
        logits: Whether the logits are kept too.
    """

    targets: Any = None
    reference: Any = None
    k: int = field(default=5, metadata={"static": True})
    logits: bool = field(default=False, metadata={"static": True})

    def __call__(self, logits: Float[Array, "*B V"]) -> Reading:
        """Returns what is kept."""
        wide = logits.astype(jnp.float32)
        log_p = jax.nn.log_softmax(wide, axis=-1)
        largest, tokens = jax.lax.top_k(log_p, self.k)
        log_prob, rank = None, None
        if self.targets is not None:
            log_prob, rank = _of_targets(log_p, self.targets)
        kl = None
        if self.reference is not None:
            reference = jnp.asarray(self.reference).astype(jnp.float32)
            log_r = jax.nn.log_softmax(jnp.broadcast_to(reference, wide.shape), axis=-1)
            kl = divergence(log_r, log_p)
        return Reading(
            tokens=tokens,
            probabilities=jnp.exp(largest),
            entropy=entropy(log_p),
            log_prob=log_prob,
            rank=rank,
            kl=kl,
            logits=wide if self.logits else None,
        )


def _of_targets(log_p: Float[Array, "*B V"], targets: Any) -> tuple[Array, Int[Array, "..."]]:
    """Returns the log-probability and the rank of each target."""
    targets = jnp.asarray(targets)
    several = targets.ndim == log_p.ndim
    if not several:
        targets = on_the_left(targets, log_p.ndim - 1)[..., None]
    targets = jnp.broadcast_to(targets, (*log_p.shape[:-1], targets.shape[-1]))
    found = jnp.take_along_axis(log_p, targets, axis=-1, mode="fill")

    def rank(one: Float[Array, "*B"]) -> Int[Array, "*B"]:
        return jnp.sum(log_p > one[..., None], axis=-1)

    # One target at a time: the comparison is as large as the logits.
    ranks = jnp.stack([rank(found[..., i]) for i in range(found.shape[-1])], axis=-1)
    return (found, ranks) if several else (found[..., 0], ranks[..., 0])


def on_the_left(x: Array, ndim: int) -> Array:
    """Gives an array that has the first axes of another one as many axes as that has."""
    return x.reshape(*x.shape, *(1,) * (ndim - x.ndim))


def check_k(spec: ModelConfig, k: int) -> None:
    """Refuses more of the likeliest tokens than there are."""
    if not 1 <= k <= spec.vocab_size:
        raise JaxdiffError(f"k={k} of {spec.vocab_size} tokens", where="k", fix="it is 1 or more")


def checked_tokens(spec: ModelConfig, tokens: Any) -> Any:
    """Returns token ids as an array, or None.

    Raises:
        JaxdiffError: If the model has no such token; only those known on the host are checked.
    """
    if tokens is None or isinstance(tokens, jax.Array):
        return tokens
    ids = np.asarray(tokens)
    outside = ids[(ids < 0) | (ids >= spec.vocab_size)]
    if outside.size:
        raise JaxdiffError(
            f"there is no token {outside.ravel()[0]}",
            where="targets",
            fix=f"the model's tokens are 0 to {spec.vocab_size - 1}",
        )
    return ids
