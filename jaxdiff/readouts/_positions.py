"""Some of the positions of a value, so that what follows is computed for those alone."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import At


def at_positions(value: Array, positions: Any, at: At) -> Array:
    """Returns the values `[B, P, ...]` at positions, or `[B, ...]` at one.

    Args:
        value: `[B, T, ...]`.
        positions: Positions of tokens, `[]` or `[P]`, or `[B, P]`, for each row its own; -1 is the
            row's last token that is no padding. All when None. Of those that are not in a row, the
            values are NaN.
        at: Where the tokens are.
    """
    if positions is None:
        return value
    positions = jnp.asarray(positions)
    single = positions.ndim == 0
    wanted = jnp.ravel(positions)[None, :] if positions.ndim < 2 else positions
    wanted = jnp.where(wanted < 0, wanted + at.last[:, None] + 1, wanted)
    hit = at.positions[:, None, :] == wanted[:, :, None]
    if at.real is not None:
        hit = hit & at.real[:, None, :]
    shape = (value.shape[0], hit.shape[1])
    tail = (1,) * (value.ndim - 2)
    # Packed documents repeat positions; those from the end are of the row's last one.
    last = hit.shape[-1] - 1 - jnp.argmax(hit[..., ::-1], axis=-1)
    columns = jnp.broadcast_to(last, shape).reshape(*shape, *tail)
    inside = jnp.broadcast_to(jnp.any(hit, axis=-1), shape).reshape(*shape, *tail)
    found = jnp.take_along_axis(value, columns, axis=1)
    found = jnp.where(inside, found, jnp.asarray(jnp.nan, found.dtype))
    return found[:, 0] if single else found


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Positions:
    """Reducer: the values at some positions."""

    positions: Any

    def __call__(self, value: Array, at: At) -> Array:
        """Returns them."""
        return at_positions(value, self.positions, at)


def checked_positions(positions: Any, length: int, *, where: str) -> Any:
    """Returns positions as an array, or None.

    Raises:
        JaxdiffError: If one is beyond the rows; only those that are known on the host are checked.
    """
    if positions is None or isinstance(positions, jax.Array):
        return positions
    positions = np.asarray(positions)
    outside = positions[(positions < -length) | (positions >= length)]
    if outside.size:
        raise JaxdiffError(
            f"position {outside.ravel()[0]} is outside of the rows",
            where=where,
            fix=f"the rows have {length} positions",
        )
    return positions
