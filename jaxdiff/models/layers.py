"""Linear maps and norms, as Flax NNX modules.

Matrices are `[out, in]`, as in most Hugging Face files, so a row of a file is a row here. A leading
axis N in a module's shape stacks the parameters of all blocks; it is sliced off before a call.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxdiff.models.spec import ModelConfig

Tap = Callable[[str, Array], Array]
"""Called as `tap(part, value)` inside a block; returns what the block goes on with."""

Seen = Callable[[Array], Array]
"""A tap of one value."""

Normal = Callable[..., Array]
"""Draws standard normal numbers: `normal(*shape)`."""


class Linear(nnx.Module):
    """`x @ weight.T + bias`, and with a low-rank update `+ x @ lora_a.T @ lora_b.T`."""

    def __init__(self, *shape: int, bias: bool, scale: float = 1.0, rank: int = 0, normal: Normal):
        *layers, out, width = shape
        std = scale * width**-0.5
        self.weight = nnx.Param(std * normal(*shape))
        self.bias = nnx.Param(jnp.zeros((*layers, out))) if bias else None
        self.lora_a = nnx.Param(width**-0.5 * normal(*layers, rank, width)) if rank else None
        self.lora_b = nnx.Param(jnp.zeros((*layers, out, rank))) if rank else None

    def __call__(self, x: Float[Array, "*B i"]) -> Float[Array, "*B o"]:
        """Applies the map to the last axis."""
        y = jnp.einsum("...i,oi->...o", x, self.weight[...])
        if self.lora_a is not None and self.lora_b is not None:
            low = jnp.einsum("...i,ri->...r", x, self.lora_a[...])
            y += jnp.einsum("...r,or->...o", low, self.lora_b[...])
        return y if self.bias is None else y + self.bias[...][(None,) * (y.ndim - 1)]


class RMSNorm(nnx.Module):
    """`x / rms(x) * (offset + weight)` over the last axis, in float32."""

    def __init__(self, *shape: int, spec: ModelConfig):
        self.weight = nnx.Param(jnp.full(shape, 1.0 - spec.norm_offset))
        self.offset, self.eps = spec.norm_offset, spec.norm_eps

    def __call__(self, x: Float[Array, "*B D"], scale: Seen | None = None) -> Float[Array, "*B D"]:
        """Normalises the last axis; `scale` sees the scale, and returns what is gone on with."""
        wide = _scaled(x.astype(jnp.float32), self.eps, scale)
        weight = self.weight[...].astype(jnp.float32) + self.offset
        return (wide * weight[(None,) * (x.ndim - 1)]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """`(x - mean(x)) / std(x) * weight + bias` over the last axis, in float32."""

    def __init__(self, *shape: int, spec: ModelConfig):
        self.weight = nnx.Param(jnp.ones(shape))
        self.bias = nnx.Param(jnp.zeros(shape))
        self.eps = spec.norm_eps

    def __call__(self, x: Float[Array, "*B D"], scale: Seen | None = None) -> Float[Array, "*B D"]:
        """Normalises the last axis; `scale` sees the scale, and returns what is gone on with."""
        wide, new = x.astype(jnp.float32), (None,) * (x.ndim - 1)
        wide = _scaled(wide - jnp.mean(wide, axis=-1, keepdims=True), self.eps, scale)
        weight, bias = self.weight[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        return (wide * weight[new] + bias[new]).astype(x.dtype)


def _scaled(x: Float[Array, "*B D"], eps: float, seen: Seen | None) -> Float[Array, "*B D"]:
    scale = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x * (scale if seen is None else seen(scale))


def offset_of(spec: ModelConfig) -> float:
    """Returns what norms add to their weights; LayerNorm nothing, whatever the spec says."""
    return spec.norm_offset if spec.norm == "rms" else 0.0


def norm(*shape: int, spec: ModelConfig) -> RMSNorm | LayerNorm:
    """Makes a norm of the kind that the model has."""
    return (LayerNorm if spec.norm == "layer" else RMSNorm)(*shape, spec=spec)


def softcap(x: Array, cap: float | None) -> Array:
    """Returns `cap * tanh(x / cap)`, or x where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)
