"""What is asked of a forward pass: taps that read, and the shape of what may edit."""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff.models._sites import Shape


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class At:
    """Where a value is: what edits and reducers may know besides the value itself.

    Attributes:
        positions: Position of each token in its text [tokens]; in generation those of the tokens
            that are run now.
        last: Position of the last token of each row that is no padding.
        real: False at padding.
        layer: Number of the block; None outside of the blocks.
        step: 0 on a text or prompt, s on the s-th token that was generated.
        others: The same site's values in the worlds before this one, in `run_together`; None in a
            world that has no such site, or skips its block.
        axes: Axes of the value, as `sites` names them.
        layers: Number of blocks of the model.
    """

    positions: Int[Array, "#B T"]
    last: Int[Array, " #B"]
    real: Bool[Array, "B T"] | None = None
    layer: Int[Array, ""] | int | None = None
    step: Int[Array, ""] | int = 0
    others: tuple[Array | None, ...] = ()
    axes: Shape = field(default=(), metadata={"static": True})
    layers: int = field(default=0, metadata={"static": True})


@runtime_checkable
class Edit(Protocol):
    """Changes the value at a site. A pytree: `site` is static, its leaves are traced."""

    @property
    def site(self) -> str:
        """Where, by any name that `canonical_site` knows."""
        ...

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the value that the model goes on with, of the same shape and dtype."""
        ...


@runtime_checkable
class View(Protocol):
    """A way to look at a value, and to write back what was changed there.

    `put(value, get(value)) == value`, and `put` of two things is `put` of the second.
    """

    def get(self, value: Array, at: At) -> Array:
        """Returns what is seen."""
        ...

    def put(self, value: Array, seen: Array, at: At) -> Array:
        """Returns the value with `seen` in place of what was seen."""
        ...


@runtime_checkable
class Reducer(Protocol):
    """Makes something small of a value inside the program, so that the value is not kept."""

    def __call__(self, value: Array, at: At) -> Any:
        """Returns an array or a pytree of them."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tap:
    """Reads a site.

    Attributes:
        site: Where, by any name that `canonical_site` knows; `blocks.*.resid_post` reads all layers
            and stacks them on a leading axis.
        view: What of the value is read.
        reduce: What is made of it.
        dtype: What the result's floats are stored as; the model's own when None.
        offload: Whether the result goes to the host's memory, from each block as it is computed, so
            that the device need not hold all of them. For `run` and `run_together`, not for
            programs that are differentiated.
        name: Key of the result; the site as it was written when empty.
    """

    site: str = field(metadata={"static": True})
    view: View | None = None
    reduce: Reducer | None = None
    dtype: str | None = field(default=None, metadata={"static": True})
    offload: bool = field(default=False, metadata={"static": True})
    name: str = field(default="", metadata={"static": True})

    @property
    def plain(self) -> bool:
        """Whether the value is kept as it is, where it is."""
        kept = self.view is None and self.reduce is None and self.dtype is None
        return kept and not self.offload

    def __call__(self, value: Array, at: At) -> Any:
        """Returns what is kept of a value."""
        seen = value if self.view is None else self.view.get(value, at)
        kept = seen if self.reduce is None else self.reduce(seen, at)
        kept = kept if self.dtype is None else jax.tree.map(self._cast, kept)
        return jax.device_put(kept, jax.memory.Space.Host) if self.offload else kept

    def _cast(self, leaf: Array) -> Array:
        return leaf.astype(self.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def as_pytree(function: Any) -> Any:
    """Returns a plain function as part of the program; a pytree that is callable stays as it is."""
    plain = jax.tree_util.all_leaves([function])
    return jax.tree_util.Partial(function) if plain else function
