"""Rotary position embedding (arXiv:2104.09864) and the ways of stretching it to long contexts."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.models.spec import Rope
from jaxdiff.types import HostOrDevice


def frequencies(rope: Rope, head_dim: int, *, long: bool = False) -> Float[np.ndarray, " half"]:
    """Returns the angular frequency of each pair of rotated coordinates [radians per token].

    `theta^(-2i / dim)`, and then by kind. linear: divided by `factor`. llama3: wavelengths above
    `context / low_freq` are stretched by `factor`, those below `context / high_freq` are kept, and
    those between interpolated. longrope (arXiv:2402.13753): each divided by a factor of its own.

    Args:
        rope: The embedding.
        head_dim: Width of a head; all of it is rotated where `rope.dim` is 0.
        long: longrope: whether the text is longer than `rope.context`.
    """
    dim = rope.dim or head_dim
    frequency = rope.theta ** (-np.arange(0, dim, 2) / dim)
    if rope.kind == "linear":
        frequency = frequency / rope.factor
    elif rope.kind == "llama3":
        turns = rope.context * frequency / (2 * np.pi)
        keep = np.clip((turns - rope.low_freq) / (rope.high_freq - rope.low_freq), 0.0, 1.0)
        frequency = keep * frequency + (1 - keep) * frequency / rope.factor
    elif rope.kind == "longrope":
        frequency = frequency / np.asarray(rope.long if long else rope.short)
    return frequency.astype(np.float32)


def angles(
    rope: Rope,
    head_dim: int,
    positions: Int[HostOrDevice, "B T"],
    lengths: Int[HostOrDevice, " B"] | None = None,
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Returns cosines and sines of the rotation angles, in float32 (bfloat16 counts to 256).

    Args:
        rope: The embedding.
        head_dim: Width of a head.
        positions: Position of each token in its text [tokens].
        lengths: longrope: length of each row's text [tokens], which decides between its short and
            long factors; the row's last position plus 1 when None. A text that is read in pieces
            needs the same length for all of them.

    Returns:
        Cosines and sines, multiplied by longrope's `attention_factor`.
    """
    frequency = jnp.asarray(frequencies(rope, head_dim))[None, None, :]
    if rope.kind == "longrope":
        last = jnp.max(positions, axis=1) + 1 if lengths is None else jnp.asarray(lengths)
        stretched = jnp.asarray(frequencies(rope, head_dim, long=True))[None, None, :]
        frequency = jnp.where((last > rope.context)[:, None, None], stretched, frequency)
    angle = positions[..., None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if rope.attention_factor == 1.0:
        return cos, sin
    return rope.attention_factor * cos, rope.attention_factor * sin


def rotate(
    x: Float[Array, "B T heads head_dim"],
    cos: Float[Array, "#B T half"],
    sin: Float[Array, "#B T half"],
) -> Float[Array, "B T heads head_dim"]:
    """Rotates coordinate i against i + half, the order of Hugging Face files.

    Coordinates from `2 * half` on stay as they are.
    """
    half = cos.shape[-1]
    wide = x.astype(jnp.float32)
    low, high, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned = [low * cos - high * sin, high * cos + low * sin]
    return jnp.concatenate(turned + ([rest] if rest.shape[-1] else []), -1).astype(x.dtype)
