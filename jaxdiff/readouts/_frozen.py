"""Norms with their scale frozen, which makes them linear; and what heads add through them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.models import At, ModelConfig
from jaxdiff.models.layers import offset_of
from jaxdiff.readouts._positions import at_positions

_pytree = jax.tree_util.register_dataclass


@_pytree
@dataclass(frozen=True)
class FrozenNorm:
    """A norm as `centre(part) * weight`, times a scale that does not depend on the part.

    LayerNorm takes the mean out of each part, RMSNorm does not; `weight` includes the offset of
    Gemma's norms. Both are float32.
    """

    params: Mapping[str, Any]
    spec: ModelConfig = field(metadata={"static": True})

    @property
    def weight(self) -> Float[Array, " D"]:
        """The factors of the coordinates."""
        return self.params["weight"].astype(jnp.float32) + jnp.float32(offset_of(self.spec))

    @property
    def bias(self) -> Float[Array, " D"] | None:
        """What is added after all; None in RMSNorm."""
        return self.params["bias"].astype(jnp.float32) if self.spec.norm == "layer" else None

    def scale(self, x: Float[Array, "*B D"]) -> Float[Array, "*B 1"]:
        """Returns the scale that the whole value has: `1 / sqrt(mean(x ** 2) + eps)`."""
        x = self.centre(x.astype(jnp.float32))
        return jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.spec.norm_eps)

    def apply(self, part: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Returns what the norm makes of a part, but for the scale and the bias."""
        part = self.centre(part.astype(jnp.float32))
        return part * self.weight[(None,) * (part.ndim - 1)]

    def back(self, direction: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Returns the direction before the norm: `back(u) @ part == u @ apply(part)`."""
        return self.centre(direction * self.weight[(None,) * (direction.ndim - 1)])

    def centre(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Takes the mean out, in LayerNorm."""
        return x - jnp.mean(x, axis=-1, keepdims=True) if self.spec.norm == "layer" else x


@_pytree
@dataclass(frozen=True)
class HeadParts:
    """Reducer of `attn.z`: what each head adds to the stream, and what all of them together do.

    Where a norm follows the attention, its scale is frozen too.

    Attributes:
        blocks: Parameters of the blocks, as in `LM.params`.
        positions: Positions that are kept.
        direction: Along which the parts are measured, broadcasting to `[B, P, D]`; None: the parts
            are kept as they are.
        spec: The model.
    """

    blocks: Any
    positions: Any
    direction: Any
    spec: ModelConfig = field(metadata={"static": True})

    def __call__(self, value: Float[Array, "B T H h"], at: At) -> tuple[Array, Array]:
        """Returns heads `[B, P, H]` or `[B, P, H, D]`, and biases `[B, P]` or `[B, P, D]`."""
        z = at_positions(value, self.positions, at).astype(jnp.float32)
        weight, bias, norm = self._own(at.layer)
        bias = jnp.broadcast_to(bias, (*z.shape[:-2], bias.shape[-1]))
        scale = None
        if norm is not None:
            # Each head's part has the scale of their sum.
            scale = norm.scale(jnp.einsum("...hx,dhx->...d", z, weight) + bias)
            bias = norm.apply(bias) * scale
            bias = bias if norm.bias is None else bias + norm.bias[(None,) * (bias.ndim - 1)]
        if self.direction is None:
            parts = jnp.einsum("...hx,dhx->...hd", z, weight)
            if norm is not None and scale is not None:
                parts = norm.apply(parts) * scale[..., None]
            return parts, bias
        direction = jnp.broadcast_to(self.direction, bias.shape)
        bias = jnp.einsum("...d,...d->...", bias, direction)
        if norm is not None and scale is not None:
            direction = norm.back(direction) * scale
        # The direction goes through the weights first: the parts themselves are H times as large.
        seen = jnp.einsum("...d,dhx->...hx", direction, weight)
        return jnp.einsum("...hx,...hx->...h", z, seen), bias

    def _own(self, layer: Any) -> tuple[Array, Array, FrozenNorm | None]:
        """Returns the output matrix `[D, H, h]` of a layer, its bias, and the norm after it."""
        apart = isinstance(self.blocks, tuple)
        blocks = self.blocks[layer] if apart else self.blocks
        own = jax.tree.map(
            lambda leaf: leaf if apart else leaf[layer],
            {name: blocks[name] for name in ("attn", "attn_post_norm") if name in blocks},
        )
        o = {name: leaf.astype(jnp.float32) for name, leaf in own["attn"]["o"].items()}
        weight = o["weight"] + o["lora_b"] @ o["lora_a"] if "lora_a" in o else o["weight"]
        bias = o.get("bias", jnp.zeros(weight.shape[0]))
        norm = FrozenNorm(own["attn_post_norm"], self.spec) if self.spec.post_norms else None
        return weight.reshape(weight.shape[0], self.spec.n_heads, -1), bias, norm
