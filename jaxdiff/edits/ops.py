"""What can be done to a value. Each op is a pytree; its arrays are leaves.

Leaves broadcast against the value from the right, as `numpy.broadcast_to` does, and are rounded to
its dtype.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
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

    low: Any = -jnp.inf
    high: Any = jnp.inf

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the limited value."""
        return jnp.clip(value, like(self.low, value), like(self.high, value))


@_op
@dataclass(frozen=True)
class Mean:
    """Puts the mean over each row's tokens that are no padding in place of all of them."""

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the mean of each row, in float32 on the way."""
        axis = at.axes.index("T")
        wide = value.astype(jnp.float32)
        if at.real is None:
            mean = jnp.mean(wide, axis=axis, keepdims=True)
        else:
            shape = [1] * value.ndim
            shape[at.axes.index("B")], shape[axis] = at.real.shape
            real = at.real.reshape(shape)
            count = jnp.maximum(jnp.sum(real, axis=axis, keepdims=True), 1)
            mean = jnp.sum(jnp.where(real, wide, 0.0), axis=axis, keepdims=True) / count
        return like(mean, value)


@_op
@dataclass(frozen=True)
class Noise:
    """Adds normal noise of standard deviation `scale`, another one at each layer and step."""

    key: Any
    scale: Any

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the value with noise."""
        key = jax.random.fold_in(self.key, 0 if at.layer is None else at.layer)
        noise = jax.random.normal(jax.random.fold_in(key, at.step), value.shape)
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
class Patch:
    """Puts in what another run computed: of another prompt, or of another model.

    Attributes:
        source: Values `[B or 1, S, ...]` at positions 0 to S - 1.
        positions: Position in the source that each of its S positions is taken from, `[S]`; the
            same one when None. Positions from S on keep their value.
    """

    source: Any
    positions: Any = None

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the source's values at the positions of the tokens."""
        if at.axes[:2] != ("B", "T"):
            raise TypeError("Patch needs a site with axes B, T, ...; use Set")
        source = jnp.asarray(self.source, value.dtype)
        if source.ndim != value.ndim or source.shape[2:] != value.shape[2:]:
            raise TypeError(f"the source is {list(source.shape)}")
        if self.positions is not None:
            source = jnp.take(source, jnp.asarray(self.positions), axis=1)
        last = source.shape[1] - 1
        rows = max(source.shape[0], at.positions.shape[0])
        places = jnp.broadcast_to(at.positions, (rows, at.positions.shape[1]))
        tail = (1,) * (value.ndim - 2)
        index = jnp.clip(places, 0, last).reshape(*places.shape, *tail)
        source = jnp.broadcast_to(source, (rows, *source.shape[1:]))
        found = jnp.take_along_axis(source, index, axis=1)
        inside = ((places >= 0) & (places <= last)).reshape(*places.shape, *tail)
        return jnp.where(inside, like(found, value), value)


@_op
@dataclass(frozen=True)
class FromRow:
    """Puts in the value of other rows of the batch: `row`, one number or one for each row."""

    row: Any

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the rows' values."""
        rows = jnp.broadcast_to(jnp.asarray(self.row), value.shape[:1])
        return jnp.take(value, rows, axis=0)


@_op
@dataclass(frozen=True)
class FromWorld:
    """Puts in what an earlier model of `models.run_together` computed at the same site.

    Attributes:
        world: Number of the model.
    """

    world: int = field(default=0, metadata={"static": True})

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the other model's value."""
        if not 0 <= self.world < len(at.others):
            raise TypeError(f"there is no world {self.world} before this one")
        return like(at.others[self.world], value)


@_op
@dataclass(frozen=True)
class PerLayer:
    """Gives each layer its own leaves: those of `op` have a leading axis N, or are scalars."""

    op: Any

    def __call__(self, value: Array, at: At) -> Array:
        """Applies the layer's own op."""
        if at.layer is None:
            raise TypeError("this site is outside of the blocks and has no layer")
        own = jax.tree.map(lambda leaf: _own(leaf, at.layer), self.op)
        return own(value, at)


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


def _own(leaf: Any, layer: Any) -> Any:
    return jnp.asarray(leaf)[layer] if jnp.ndim(leaf) else leaf
