"""What a tap can make of a value inside the program, so that nothing large is kept."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.edits.ops import real_tokens
from jaxdiff.models import At

_reducer = jax.tree_util.register_dataclass


@_reducer
@dataclass(frozen=True)
class Last:
    """The value at each row's last token that is no padding: `[B, ...]`."""

    def __call__(self, value: Array, at: At) -> Array:
        """Returns it."""
        axis = at.axes.index("T")
        if at.real is None:
            return jnp.take(value, value.shape[axis] - 1, axis=axis)
        columns = jnp.arange(value.shape[axis])[None, :]
        last = jnp.max(jnp.where(at.real, columns, 0), axis=1)
        last = last.reshape(-1, *(1,) * (value.ndim - 1))
        return jnp.take_along_axis(value, last, axis=axis).squeeze(axis)


@_reducer
@dataclass(frozen=True)
class Mean:
    """The mean over the tokens of each row that are no padding, in float32: `[B, ...]`."""

    def __call__(self, value: Array, at: At) -> Float[Array, "B ..."]:
        """Returns it."""
        axis, real = at.axes.index("T"), real_tokens(value, at)
        total = jnp.sum(value, axis=axis, where=real, dtype=jnp.float32)
        return total / jnp.maximum(jnp.sum(real, axis=axis, dtype=jnp.float32), 1.0)


@_reducer
@dataclass(frozen=True)
class Norm:
    """The Euclidean norm over the last axis, in float32."""

    def __call__(self, value: Array, at: At) -> Float[Array, "..."]:
        """Returns it."""
        return jnp.linalg.norm(value.astype(jnp.float32), axis=-1)


@_reducer
@dataclass(frozen=True)
class TopK:
    """The `k` largest values of the last axis and their places: a pair `([..., k], [..., k])`.

    With the view `Latents`, a token's strongest latents.
    """

    k: int = field(metadata={"static": True})

    def __call__(self, value: Array, at: At) -> tuple[Array, Array]:
        """Returns values and places."""
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
        wide = value.astype(jnp.float32)
        return jnp.einsum("...d,kd->...k", wide, directions, precision="highest")


@_reducer
@dataclass(frozen=True)
class Chain:
    """Several reducers, one after the other.

    Those that need the tokens (`Last`, `Mean`) come after those that work on the last axis.
    """

    reducers: tuple[Any, ...]

    def __call__(self, value: Array, at: At) -> Any:
        """Applies them in order."""
        for reducer in self.reducers:
            value = reducer(value, at)
        return value
