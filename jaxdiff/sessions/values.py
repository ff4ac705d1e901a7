"""What earlier steps of a session captured, in the place of leaves of later ones.

Small maps of captured values are here; what needs the value's tokens or model is a tap's reducer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.errors import JaxdiffError

Found = Mapping[str, Mapping[str, Any]]
"""What was captured, by the names of the step and of its tap."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Captured:
    """What a tap of an earlier step made, or its logits.

    Attributes:
        step: Name of the step.
        tap: Name of the tap, or "logits" for what the step returns as such.
    """

    step: str = field(metadata={"static": True})
    tap: str = field(metadata={"static": True})

    def __call__(self, found: Found) -> Any:
        """Returns it."""
        return found[self.step][self.tap]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Difference:
    """`of - minus`: what one run has and another has not, like a steering vector."""

    of: Any
    minus: Any

    def __call__(self, found: Found) -> Array:
        """Returns the difference of two arrays of one shape, in the dtype of the first."""
        of, minus = _array(self.of, found), _array(self.minus, found)
        if of.shape != minus.shape:
            raise JaxdiffError(
                f"a difference of {list(of.shape)} and {list(minus.shape)}",
                where="Difference",
                fix="take it of values of one shape: Average(...) is the mean over rows",
            )
        return of - minus.astype(of.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Average:
    """The mean over rows, in float32.

    Attributes:
        of: The value.
        axis: Its axis of rows: 0, or 1 where a tap of a `blocks.*` site has layers before it.
    """

    of: Any
    axis: int = field(default=0, metadata={"static": True})

    def __call__(self, found: Found) -> Float[Array, "..."]:
        """Returns the mean."""
        value = _array(self.of, found)
        _check_axis(value, self.axis)
        return jnp.mean(value, axis=self.axis, dtype=jnp.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerRow:
    """One value for all tokens of a row: what `[B, D]` becomes to be set in `[B, T, D]`.

    What `edits.Last` and `edits.Mean` make needs it: as a leaf of an edit, `[B, D]` would be taken
    for `[T, D]`.

    Attributes:
        of: The value.
        axis: Its axis of rows, as of `Average`.
    """

    of: Any
    axis: int = field(default=0, metadata={"static": True})

    def __call__(self, found: Found) -> Array:
        """Returns the value with an axis of size 1 after that of rows."""
        value = _array(self.of, found)
        _check_axis(value, self.axis)
        return jnp.expand_dims(value, self.axis + 1)


VALUES = (Captured, Difference, Average, PerRow)
Value = Captured | Difference | Average | PerRow


def filled(tree: Any, found: Found) -> Any:
    """Returns a tree with what was captured in place of what stands for it."""

    def fill(leaf: Any) -> Any:
        return leaf(found) if isinstance(leaf, VALUES) else leaf

    return jax.tree.map(fill, tree, is_leaf=lambda leaf: isinstance(leaf, VALUES))


def captured_in(tree: Any) -> list[Captured]:
    """Returns what a tree uses of earlier steps."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Captured))
    return [leaf for leaf in leaves if isinstance(leaf, Captured)]


def _array(of: Any, found: Found) -> Array:
    value = of(found) if isinstance(of, VALUES) else of
    if not hasattr(value, "shape"):
        raise JaxdiffError(
            f"{type(value).__name__} is no array", where=str(of), fix="a reducer makes one of it"
        )
    return jnp.asarray(value)


def _check_axis(value: Array, axis: int) -> None:
    if not 0 <= axis < value.ndim:
        raise JaxdiffError(f"there is no axis {axis} in {list(value.shape)}", where="axis of rows")
