"""Entries of relu and jumprelu dictionaries, and the derivatives of their penalties, one by one.

They are those of `dictionaries.penalties`, for any array of entries: a list or a whole batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiff.config import DictionaryConfig
from jaxdiff.dictionaries.dictionary import combined_norms
from jaxdiff.dictionaries.penalties import TANH_SCALE


class Active(NamedTuple):
    """Entries.

    Attributes:
        value: Value, 0 where not active.
        keep: Whether it is active.
        window: Density of the window around the threshold, 1 / bandwidth inside of it.
    """

    value: Float[Array, "*s"]
    keep: Bool[Array, "*s"]
    window: Float[Array, "*s"]


class Slopes(NamedTuple):
    """The penalty of entries, and derivatives of the loss.

    Attributes:
        penalty: Penalty, not weighted.
        pre: Derivative with respect to the value before the activation.
        norm: With respect to the latent's code norm.
        log_threshold: With respect to the logarithm of its threshold.
    """

    penalty: Float[Array, "*s"]
    pre: Float[Array, "*s"]
    norm: Float[Array, "*s"]
    log_threshold: Float[Array, "*s"]


def active(pre: Float[Array, "*s"], threshold: Float[Array, "*t"], config: DictionaryConfig):
    """Returns entries from what they are before the activation, with thresholds that broadcast."""
    if config.activation == "relu":
        return Active(jnp.maximum(pre, 0.0), pre > 0, jnp.zeros_like(pre))
    keep = (pre > 0) & (pre > threshold)
    near = jnp.abs(pre - threshold) < config.bandwidth / 2
    return Active(jnp.where(keep, pre, 0.0), keep, jnp.where(near, 1 / config.bandwidth, 0.0))


def least(threshold: Float[Array, " L"], config: DictionaryConfig) -> Float[Array, " L"]:
    """Returns what an entry has to exceed before the activation to have any derivative."""
    if config.activation == "relu":
        return jnp.zeros_like(threshold)
    return threshold - config.bandwidth / 2


def slopes(
    dot: Float[Array, "*s"],
    a: Active,
    threshold: Float[Array, "*t"],
    norms: Float[Array, "*t"],
    weight: Float[Array, ""],
    config: DictionaryConfig,
) -> Slopes:
    """Returns the penalty of entries and the derivatives of the loss.

    Args:
        dot: Derivative of the reconstruction term with respect to the values.
        a: Entries.
        threshold: Their thresholds.
        norms: Their code norms.
        weight: Weight of the penalty of one entry.
        config: Settings of the dictionary.
    """
    direct = 0.0
    if config.activation == "relu":
        penalty, rise = a.value * norms, 1.0
    elif config.penalty == "tanh":
        penalty = jnp.tanh(TANH_SCALE * a.value * norms)
        rise = TANH_SCALE * (1 - jnp.square(penalty))
    else:
        penalty, rise, direct = a.keep.astype(jnp.float32), 0.0, weight
    value = dot + weight * rise * norms
    log_threshold = -threshold * a.window * (threshold * value + direct)
    pre = jnp.where(a.keep, value, 0.0)
    return Slopes(penalty, pre, weight * rise * a.value, log_threshold)


def pull(
    norm_slopes: Float[Array, " L"], squares: Float[Array, "L M"], config: DictionaryConfig
) -> Float[Array, "L M"]:
    """Returns the penalty's gradient of decoder rows, as a factor of each model's part of them.

    Args:
        norm_slopes: Derivatives with respect to the code norms.
        squares: Squared norms of the parts.
        config: Settings of the dictionary.
    """
    norms = jnp.sqrt(squares)

    def weighted(norms):
        return jnp.sum(norm_slopes * combined_norms(norms, config.code_norm))

    each = jax.grad(weighted)(norms)
    return jnp.where(norms > 0, each / jnp.where(norms > 0, norms, 1.0), 0.0)
