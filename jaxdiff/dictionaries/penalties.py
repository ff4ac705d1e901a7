"""What keeps latents few, where no selection does: L1, and the two penalties of jumprelu.

A step has no gradient. Those of its threshold are estimated from the entries in a window around it
(a kernel density estimate with a rectangle of width epsilon): arXiv:2407.14435, section 3.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxdiff.config import DictionaryConfig
from jaxdiff.dictionaries.selection import Codes

# Scale of f N in the tanh of transformer-circuits.pub, January 2025.
TANH_SCALE = 4.0


def jump(codes: Codes, threshold: Float[Array, " L"], bandwidth: float) -> Float[Array, "B L"]:
    """Returns f where it exceeds the threshold t; the gradient of t is -t / epsilon in the window.

    To f goes 1 where it exceeds the threshold.
    """
    value = jnp.where(codes.keep, codes.f, 0.0)
    return value + _through(-threshold[None] * _window(codes, threshold, bandwidth), threshold)


def sparsity(
    codes: Codes,
    active: Float[Array, "B *NL"],
    threshold: Float[Array, "*T"],
    norms: Float[Array, " L"] | Float[Array, "L N"],
    config: DictionaryConfig,
) -> Float[Array, ""]:
    """Returns the sparsity term of a batch, a sum over latents and mean over rows, not weighted.

    With N_j the code norm: sum of f_j N_j, for jumprelu sum of tanh(4 f_j N_j) (Anthropic, January
    2025) or the number of active latents (Gemma Scope, arXiv:2408.05147), whose gradient for a
    threshold is -1 / epsilon in the window.

    Args:
        codes: Latents of the batch.
        active: Values of the active ones.
        threshold: Thresholds of the latents; used for jumprelu.
        norms: Code norms.
        config: Settings of the dictionary.
    """
    if config.activation != "jumprelu":
        terms = jnp.where(codes.keep, codes.keys, 0.0)
    elif config.penalty == "tanh":
        terms = jnp.tanh(TANH_SCALE * active * norms[None])
    else:
        terms = codes.keep.astype(jnp.float32)
        terms += _through(-_window(codes, threshold, config.bandwidth), threshold)
    if config.shared_penalty != 1:
        first = jnp.arange(terms.shape[-1]) < config.shared
        weights = jnp.where(first, config.shared_penalty, 1.0)
        terms = terms * weights.reshape(*(1,) * (terms.ndim - 1), -1)
    return jnp.sum(terms) / len(terms)


def below_threshold(
    codes: Codes, threshold: Float[Array, " L"], norms: Float[Array, " L"]
) -> Float[Array, ""]:
    """Returns the sum over latents of relu(t_j - pre_j) N_j, mean over rows.

    It pulls latents up that never reach their threshold (transformer-circuits.pub, January 2025).
    """
    missing = jax.nn.relu(threshold[None] - codes.pre)
    return jnp.sum(missing * norms[None]) / len(missing)


def _window(codes: Codes, threshold, bandwidth):
    """Returns 1 / epsilon where a value lies within epsilon / 2 of its threshold."""
    near = jnp.abs(codes.pre - threshold[None]) < bandwidth / 2
    return jnp.where(near, 1 / bandwidth, 0.0)


def _through(slope, threshold):
    """Returns 0, whose gradient with respect to the threshold is `slope`."""
    return lax.stop_gradient(slope) * (threshold - lax.stop_gradient(threshold))[None]
