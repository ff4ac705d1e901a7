"""What is asked of the logits of each row's last token: one number a row, in float32.

    metric = LogitDifference(right=names, wrong=others)
    logits, _ = models.run(lm, tokens, logits="last")
    metric(logits)

A metric is a pytree that is called with logits `[B, V]`. Its tokens are leaves: other ones compile
nothing anew. Token ids are `[]`, the same one for all rows; `[B]`, for each row its own; or
`[B, K]` or `[1, K]`, of which the mean over K is taken. An id that does not exist gives NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Metric = Callable[[Array], Array]
"""Makes `[B]` of logits `[B, V]`: one of the classes here, or a function of one's own."""

_metric = jax.tree_util.register_dataclass


@_metric
@dataclass(frozen=True)
class Logit:
    """`logits[token]`."""

    token: Any

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, " B"]:
        """Returns it for each row."""
        return _at(logits.astype(jnp.float32), self.token)


@_metric
@dataclass(frozen=True)
class LogitDifference:
    """`logits[right] - logits[wrong]`."""

    right: Any
    wrong: Any

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, " B"]:
        """Returns it for each row."""
        logits = logits.astype(jnp.float32)
        return _at(logits, self.right) - _at(logits, self.wrong)


@_metric
@dataclass(frozen=True)
class LogProb:
    """`log softmax(logits)[token]`, in nats."""

    token: Any

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, " B"]:
        """Returns it for each row."""
        return _at(_log_softmax(logits), self.token)


@_metric
@dataclass(frozen=True)
class Probability:
    """`softmax(logits)[token]`."""

    token: Any

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, " B"]:
        """Returns it for each row."""
        return _at(jnp.exp(_log_softmax(logits)), self.token)


@_metric
@dataclass(frozen=True)
class KL:
    """`KL(p || q) = sum(p * (log p - log q))`, in nats: how far logits `q` went from a reference.

    Attributes:
        reference: Logits whose softmax is `p`, `[B, V]`, or `[V]` for all rows.
    """

    reference: Any

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, " B"]:
        """Returns it for each row."""
        p = jnp.broadcast_to(_log_softmax(jnp.asarray(self.reference)), logits.shape)
        return divergence(p, _log_softmax(logits))


@_metric
@dataclass(frozen=True)
class Entropy:
    """`-sum(p * log p)` of `p = softmax(logits)`, in nats."""

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, " B"]:
        """Returns it for each row."""
        return entropy(_log_softmax(logits))


def divergence(log_p: Float[Array, "*B V"], log_q: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """Returns `KL(p || q)` of log-probabilities; what p never says adds nothing."""
    p = jnp.exp(log_p)
    # Not p > 0, which would hide NaN; chosen before the product, whose gradient would be NaN.
    return jnp.sum(p * jnp.where(p == 0, 0.0, log_p - log_q), axis=-1)


def entropy(log_p: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """Returns the entropy of log-probabilities."""
    p = jnp.exp(log_p)
    return -jnp.sum(p * jnp.where(p == 0, 0.0, log_p), axis=-1)


def _log_softmax(logits: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)


def _at(values: Float[Array, "B V"], token: Any) -> Float[Array, " B"]:
    """Returns each row's value at its token, or the mean over several."""
    token = jnp.asarray(token)
    token = jnp.reshape(token, (-1, 1)) if token.ndim < 2 else token
    token = jnp.broadcast_to(token, (values.shape[0], token.shape[1]))
    return jnp.mean(jnp.take_along_axis(values, token, axis=1, mode="fill"), axis=1)
