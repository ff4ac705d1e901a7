"""Ways to look at a value and write back what was changed: by heads, in a subspace.

`put(value, get(value)) == value`, exactly, and a second `put` replaces the first.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.models import At
from jaxdiff.types import HostOrDevice

_view = jax.tree_util.register_dataclass


@_view
@dataclass(frozen=True)
class Heads:
    """Splits the last axis into `count` heads: `[..., D]` is seen as `[..., count, D / count]`."""

    count: int = field(metadata={"static": True})

    def get(self, value: Array, at: At) -> Array:
        """Returns the value by heads."""
        return value.reshape(*value.shape[:-1], self.count, -1)

    def put(self, value: Array, seen: Array, at: At) -> Array:
        """Returns the heads joined."""
        return seen.reshape(value.shape)


@_view
@dataclass(frozen=True)
class Subspace:
    """The coordinates in a subspace of the last axis; what is orthogonal to it is kept.

    `Set(0.0)` in it projects the value out of the subspace, and with `complement` onto it;
    `FromRow` in it is a subspace interchange.

    Attributes:
        vectors: Columns `[D, K]` that span it, any ones. The coordinates, in float32, are those in
            their Gram-Schmidt basis, whose first vector has the direction of the first column. It
            is made here, so that a gradient step on the vectors leads to another subspace.
        complement: Whether what is orthogonal to the subspace is seen instead, as a `[D]` vector.
    """

    vectors: Any
    complement: bool = field(default=False, metadata={"static": True})

    def get(self, value: Array, at: At) -> Float[Array, "..."]:
        """Returns the coordinates, or what is orthogonal."""
        return self._seen(value.astype(jnp.float32), orthonormal(self.vectors))

    def put(self, value: Array, seen: Array, at: At) -> Array:
        """Returns the value with other coordinates."""
        wide, basis = value.astype(jnp.float32), orthonormal(self.vectors)
        change = seen.astype(jnp.float32) - self._seen(wide, basis)
        change = _outside(change, basis) if self.complement else _embed(change, basis)
        return value + change.astype(value.dtype)

    def _seen(self, wide: Array, basis: Array) -> Array:
        return _outside(wide, basis) if self.complement else _coordinates(wide, basis)


def orthonormal(vectors: Float[HostOrDevice, "D K"]) -> Float[Array, "D K"]:
    """Returns the Gram-Schmidt basis of columns, in float32.

    Differentiable where they are independent; a column that depends on those before it becomes 0.
    """
    wide = jnp.asarray(vectors).astype(jnp.float32)
    q, r = jnp.linalg.qr(wide)
    diagonal = jnp.diagonal(r)
    lengths = jnp.linalg.norm(jax.lax.stop_gradient(wide), axis=0)
    # QR gives each column either sign, and any direction to one that has none of its own.
    own = jnp.abs(diagonal) > 1e-6 * lengths
    return q * jnp.where(own, jnp.sign(diagonal), 0.0)[None, :]


def _coordinates(wide: Array, basis: Array) -> Array:
    return jnp.einsum("...d,dk->...k", wide, basis, precision="highest")


def _embed(coordinates: Array, basis: Array) -> Array:
    return jnp.einsum("...k,dk->...d", coordinates, basis, precision="highest")


def _outside(wide: Array, basis: Array) -> Array:
    return wide - _embed(_coordinates(wide, basis), basis)
