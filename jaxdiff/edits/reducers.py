"""What a tap can make of a value inside the program, so that nothing large is kept."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.models import At

_reducer = jax.tree_util.register_dataclass


@_reducer
@dataclass(frozen=True)
class Last:
    """The value at each row's last token that is no padding: `[B, ...]`."""

    def __call__(self, value: Array, at: At) -> Array:
        """Returns it."""
        return jnp.take_along_axis(value, _last_columns(value, at), axis=_time(at)).squeeze(
            _time(at)
        )


@_reducer
@dataclass(frozen=True)
class Mean:
    """The mean over the tokens of each row that are no padding, in float32: `[B, ...]`."""

    def __call__(self, value: Array, at: At) -> Array:
        """Returns it."""
        real, wide = _real(value, at), value.astype(jnp.float32)
        total = jnp.sum(jnp.where(real, wide, 0.0), axis=_time(at))
        return total / jnp.maximum(jnp.sum(real, axis=_time(at)), 1)


@_reducer
@dataclass(frozen=True)
class Norm:
    """The Euclidean norm over the last axis, in float32."""

    def __call__(self, value: Array, at: At) -> Array:
        """Returns it."""
        return jnp.linalg.norm(value.astype(jnp.float32), axis=-1)


@_reducer
@dataclass(frozen=True)
class TopK:
    """The `k` largest values of the last axis and their places: a pair `([..., k], [..., k])`."""

    k: int = field(metadata={"static": True})

    def __call__(self, value: Array, at: At) -> tuple[Array, Array]:
        """Returns values and indices."""
        values, places = jax.lax.top_k(value, self.k)
        return values, places


@_reducer
@dataclass(frozen=True)
class Project:
    """Dot products with `directions` `[K, D]`, in float32: `[..., K]`. A linear probe is one."""

    directions: Any

    def __call__(self, value: Array, at: At) -> Float[Array, "*B K"]:
        """Returns them."""
        directions = jnp.asarray(self.directions, jnp.float32)
        return jnp.einsum("...d,kd->...k", value.astype(jnp.float32), directions)


@_reducer
@dataclass(frozen=True)
class Chain:
    """Several reducers, one after the other; each must keep the axes that the next one needs."""

    reducers: tuple[Any, ...]

    def __call__(self, value: Array, at: At) -> Any:
        """Applies them in order."""
        for reducer in self.reducers:
            value = reducer(value, at)
        return value


def _time(at: At) -> int:
    return at.axes.index("T")


def _last_columns(value: Array, at: At) -> Array:
    if at.real is None:
        columns = jnp.full(value.shape[0], value.shape[_time(at)] - 1)
    else:
        places = jnp.arange(at.real.shape[1])[None, :]
        columns = jnp.max(jnp.where(at.real, places, 0), axis=1)
    return columns.reshape(-1, *(1,) * (value.ndim - 1))


def _real(value: Array, at: At) -> Array:
    shape = [1] * value.ndim
    shape[at.axes.index("B")], shape[_time(at)] = value.shape[0], value.shape[_time(at)]
    if at.real is None:
        return jnp.ones(shape, bool)
    return at.real.reshape(shape)
