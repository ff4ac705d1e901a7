"""Rotary position embedding (arXiv:2104.09864), with the frequency scaling of Llama 3.1."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.models.spec import Rope
from jaxdiff.types import HostOrDevice


def frequencies(rope: Rope, head_dim: int) -> Float[np.ndarray, " half"]:
    """Returns the angular frequency of each pair of coordinates [radians per token].

    `theta^(-2i / head_dim)`; with a scaling factor, wavelengths above `context / low_freq` are
    stretched by it, those below `context / high_freq` are kept, and those between interpolated.
    """
    frequency = rope.theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if rope.factor != 1.0:
        turns = rope.context * frequency / (2 * np.pi)
        keep = np.clip((turns - rope.low_freq) / (rope.high_freq - rope.low_freq), 0.0, 1.0)
        frequency = keep * frequency + (1 - keep) * frequency / rope.factor
    return frequency.astype(np.float32)


def angles(
    rope: Rope, head_dim: int, positions: Int[HostOrDevice, "B T"]
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Returns cosines and sines of the rotation angles, in float32 (bfloat16 counts to 256)."""
    angle = positions[..., None].astype(jnp.float32) * frequencies(rope, head_dim)[None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "B T heads head_dim"],
    cos: Float[Array, "#B T half"],
    sin: Float[Array, "#B T half"],
) -> Float[Array, "B T heads head_dim"]:
    """Rotates coordinate i against i + head_dim / 2, the order of Hugging Face files."""
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x.dtype)
