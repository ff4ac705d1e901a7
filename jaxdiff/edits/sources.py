"""Ops that put in what was computed elsewhere: in another run, another row, another model."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdiff.edits.ops import like
from jaxdiff.models import At

_op = jax.tree_util.register_dataclass


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
        source = jnp.asarray(self.source).astype(value.dtype)
        rows = value.shape[0]
        if source.ndim != value.ndim or source.shape[2:] != value.shape[2:]:
            raise TypeError(f"the source is {list(source.shape)}")
        if self.positions is not None:
            source = jnp.take(source, jnp.asarray(self.positions), axis=1)
        source = jnp.broadcast_to(source, (rows, *source.shape[1:]))
        places = jnp.broadcast_to(at.positions, value.shape[:2])
        places = places.reshape(*places.shape, *(1,) * (value.ndim - 2))
        last = source.shape[1] - 1
        found = jnp.take_along_axis(source, jnp.clip(places, 0, last), axis=1)
        return jnp.where((places >= 0) & (places <= last), found, value)


@_op
@dataclass(frozen=True)
class FromRow:
    """Puts in the value of other rows of the batch.

    Attributes:
        row: Number of the row, one for all rows or `[B]`.
    """

    row: Any

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the rows' values."""
        rows = jnp.broadcast_to(jnp.asarray(self.row), value.shape[:1])
        return jnp.take(value, rows, axis=0)


@_op
@dataclass(frozen=True)
class FromWorld:
    """Puts in what an earlier model of `models.run_together` computed at the same site.

    Models of different widths, or spaces, are stitched by an affine map:
    `other @ weight.T + bias`.

    Attributes:
        world: Number of the model.
        weight: `[D, width of the other]`; none when None.
        bias: `[D]`; none when None.
    """

    world: int = field(default=0, metadata={"static": True})
    weight: Any = None
    bias: Any = None

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the other model's value."""
        if not 0 <= self.world < len(at.others):
            raise TypeError(f"there is no world {self.world} before this one")
        other = at.others[self.world]
        if other is None:
            raise TypeError(f"world {self.world} has no value at this site")
        other = other.astype(value.dtype)
        if self.weight is not None:
            weight = jnp.asarray(self.weight).astype(value.dtype)
            other = jnp.einsum("...e,de->...d", other, weight)
        if other.shape != value.shape:
            raise TypeError(f"the other model's value is {list(other.shape)}")
        return other if self.bias is None else other + like(self.bias, value)
