"""What can be done to a value. Each op is a pytree; its arrays are leaves.

Leaves broadcast against the value from the right, as `numpy.broadcast_to` does, and are rounded to
its dtype.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdiff.models import At

_op = jax.tree_util.register_dataclass


@_op
@dataclass(frozen=True)
class Set:
    """Puts `to` in place of the value; `Set(0.0)` ablates it.

    Where no selector limits it, nothing that only the old value needs is computed: set
    `blocks.5.resid_pre` and the model starts there.
    """

    to: Any

    def __call__(self, value: Array, at: At) -> Array:
        """Returns `to`."""
        return like(self.to, value)


@_op
@dataclass(frozen=True)
class Add:
    """Adds `strength * vector`: steering."""

    vector: Any
    strength: Any = 1.0

    def __call__(self, value: Array, at: At) -> Array:
        """Returns `value + strength * vector`."""
        return value + like(self.strength, value) * like(self.vector, value)


@_op
@dataclass(frozen=True)
class Scale:
    """Multiplies by `by`; with a mask `[H, 1]` at `attn.z`, switches heads off."""

    by: Any

    def __call__(self, value: Array, at: At) -> Array:
        """Returns `by * value`."""
        return like(self.by, value) * value


@_op
@dataclass(frozen=True)
class Lerp:
    """Goes from the value (`weight` 0) to `to` (`weight` 1)."""

    to: Any
    weight: Any

    def __call__(self, value: Array, at: At) -> Array:
        """Returns `value + weight * (to - value)`."""
        return value + like(self.weight, value) * (like(self.to, value) - value)


@_op
@dataclass(frozen=True)
class Clamp:
    """Limits the value to `[low, high]`."""

    low: Any = -np.inf
    high: Any = np.inf

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the limited value."""
        return jnp.clip(value, like(self.low, value), like(self.high, value))


@_op
@dataclass(frozen=True)
class ToMean:
    """Puts the mean over the row's tokens that are no padding in place of each of them.

    Later tokens then reach earlier ones. The mean over a corpus is for `Set`.
    """

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the mean of each row, summed in float32."""
        axis = at.axes.index("T")
        real = real_tokens(value, at)
        total = jnp.sum(value, axis=axis, keepdims=True, where=real, dtype=jnp.float32)
        count = jnp.sum(real, axis=axis, keepdims=True, dtype=jnp.float32)
        return like(total / jnp.maximum(count, 1.0), value)


@_op
@dataclass(frozen=True)
class Noise:
    """Adds normal noise of standard deviation `scale`.

    It is another one for each layer, row and position, whatever else is in the batch, so that a
    text that is generated step by step gets the same as one that is read at once.
    """

    key: Any
    scale: Any

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the value with noise."""
        b, t = at.axes.index("B"), at.axes.index("T")
        own = jax.random.fold_in(self.key, 0 if at.layer is None else at.layer)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(own, jnp.arange(value.shape[b]))
        positions = jnp.broadcast_to(at.positions, (value.shape[b], at.positions.shape[1]))
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, positions)
        rest = tuple(n for axis, n in enumerate(value.shape) if axis not in (b, t))
        noise = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, rest)))(keys)
        noise = jnp.moveaxis(noise, (0, 1), (b, t))
        return value + like(self.scale, value) * like(noise, value)


@_op
@dataclass(frozen=True)
class LowRank:
    """Adds a low-rank map of the value: `value + strength * (value @ down.T) @ up.T`.

    Attributes:
        down: `[R, D]`.
        up: `[D, R]`.
        strength: Factor of the update.
    """

    down: Any
    up: Any
    strength: Any = 1.0

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the value with the update."""
        low = jnp.einsum("...d,rd->...r", value, jnp.asarray(self.down, value.dtype))
        update = jnp.einsum("...r,dr->...d", low, jnp.asarray(self.up, value.dtype))
        return value + like(self.strength, value) * update


@_op
@dataclass(frozen=True)
class Skip:
    """Leaves a block out: `edit("blocks.3", Skip())`. It is not computed."""

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the value: what skips the block is the site."""
        return value


def like(leaf: Any, value: Array) -> Array:
    """Returns a leaf in the dtype and shape of a value.

    Raises:
        ValueError: If it does not broadcast.
    """
    return jnp.broadcast_to(jnp.asarray(leaf).astype(value.dtype), value.shape)


def real_tokens(value: Array, at: At) -> Array:
    """Returns False at padding, with as many axes as the value."""
    b, t = at.axes.index("B"), at.axes.index("T")
    shape = [1] * value.ndim
    shape[b], shape[t] = value.shape[b], value.shape[t]
    return jnp.ones(shape, bool) if at.real is None else at.real.reshape(shape)
