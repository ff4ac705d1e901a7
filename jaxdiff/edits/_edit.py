"""An edit: what is done to the value of a site, and at which layers, positions, rows, heads, steps.

The structure of an edit (site, op, which selectors there are) decides the program; everything else
is a leaf and may be traced: sweep it with `vmap`, differentiate it, train it.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import At, View

Selector = Any
"""Numbers ([] or [K], negative ones from the end) or a mask; of arrays or of what makes one."""


@runtime_checkable
class Op(Protocol):
    """Changes a value; a pytree."""

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the new value, of the same shape and dtype."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Edit:
    """What `edit` makes; `edit` says what the fields are."""

    site: str = field(metadata={"static": True})
    op: Any
    view: Any = None
    layers: Any = None
    positions: Any = None
    rows: Any = None
    heads: Any = None
    steps: Any = None

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the value with the op applied where the selectors say."""
        seen = value if self.view is None else self.view.get(value, at)
        new = self.op(seen, at)
        new = new if self.view is None else self.view.put(value, new, at)
        mask = self._mask(value, at)
        return new if mask is None else jnp.where(mask, new, value)

    def _mask(self, value: Array, at: At) -> Bool[Array, "..."] | None:
        """Returns where the edit applies, of the value's rank; None where it is everywhere."""
        b = at.axes.index("B")
        masks = []
        if self.positions is not None:
            hit = _at_positions(self.positions, at)
            masks.append(_on_axes(hit, (b, at.axes.index("T")), value.ndim))
        if self.rows is not None:
            masks.append(_on_axes(_hits(self.rows, value.shape[b]), (b,), value.ndim))
        if self.heads is not None:
            axis = _head_axis(at)
            masks.append(_on_axes(_hits(self.heads, value.shape[axis]), (axis,), value.ndim))
        for selector, number in ((self.layers, at.layer), (self.steps, at.step)):
            if selector is not None:
                masks.append(_on_axes(_is_selected(selector, number), (), value.ndim))
        mask = None
        for each in masks:
            mask = each if mask is None else mask & each
        return mask


def edit(
    site: str,
    op: Op,
    *,
    view: View | None = None,
    layers: Selector = None,
    positions: Selector = None,
    rows: Selector = None,
    heads: Selector = None,
    steps: Selector = None,
) -> Edit:
    """Makes an edit: `op` on the value of `site`, where all selectors agree.

    Selectors are numbers (one, or `[K]` of them) or masks, and None selects everything. They are
    leaves: another position or layer compiles nothing anew.

    Args:
        site: Where, by any name that `models.canonical_site` knows. `blocks.*.resid_post` is every
            block, or those that `layers` selects; `blocks.3` takes only `Skip`.
        op: What is done: `Set`, `Add`, `Scale`, ...
        view: What of the value the op sees, and how it is written back.
        layers: Numbers of blocks, or a mask over them; for `blocks.*` sites.
        positions: Positions of tokens, -1 for the last token of the row that is no padding; or
            `[B, K]`, for each row its own; or a mask `[T]` or `[B, T]` over positions.
        rows: Rows of the batch.
        heads: Heads; of the keys' and values' own at `attn.k` and `attn.v`.
        steps: Steps of generation: 0 is the prompt, s the s-th token that was generated.

    Raises:
        JaxdiffError: If `layers` is given for a site of one layer, or not for what it is.
    """
    if not isinstance(op, Op) or isinstance(op, type):
        raise JaxdiffError(
            f"an edit needs an op, not {op!r}", where=site, fix="for instance edits.Add(vector)"
        )
    if layers is not None and not site.startswith(("blocks.*", "model.layers.*", "layers_")):
        raise JaxdiffError(
            "layers select among the blocks of a `*` site",
            where=site,
            fix="write blocks.*.… for the site, or leave layers out",
        )
    given = {
        "layers": layers,
        "positions": positions,
        "rows": rows,
        "heads": heads,
        "steps": steps,
    }
    return Edit(site, op, view, **{name: _selector(name, s, site) for name, s in given.items()})


def _selector(name: str, value: Selector, site: str) -> Any:
    """Returns numbers as they are traced: those of the host stay there, to be checked."""
    if value is None or isinstance(value, jax.Array):
        return value
    numbers = np.asarray(value)
    if numbers.dtype != bool and not np.issubdtype(numbers.dtype, np.integer):
        raise JaxdiffError(f"{name} are numbers or a mask, not {numbers.dtype}", where=site)
    return numbers if numbers.dtype == bool else numbers.astype(np.int32)


def _hits(selector: Selector, size: int) -> Bool[Array, " n"]:
    """Returns which of `size` places are selected."""
    selector = jnp.asarray(selector)
    if selector.dtype == bool:
        return selector
    wanted = jnp.where(selector < 0, selector + size, selector)
    return jnp.any(jnp.arange(size)[:, None] == jnp.ravel(wanted)[None, :], axis=1)


def _is_selected(selector: Selector, number: Int[Array, ""] | int | None) -> Bool[Array, ""]:
    if number is None:
        raise TypeError("this site is outside of the blocks and has no layer")
    selector = jnp.asarray(selector)
    if selector.dtype == bool:
        inside = number < selector.shape[0]
        return selector[jnp.minimum(number, selector.shape[0] - 1)] & inside
    return jnp.any(jnp.ravel(selector) == number)


def _at_positions(selector: Selector, at: At) -> Bool[Array, "#B T"]:
    selector, positions = jnp.asarray(selector), at.positions
    if selector.dtype == bool:
        mask = jnp.atleast_2d(selector)
        rows = max(mask.shape[0], positions.shape[0])
        mask = jnp.broadcast_to(mask, (rows, mask.shape[1]))
        places = jnp.broadcast_to(positions, (rows, positions.shape[1]))
        last = mask.shape[1] - 1
        found = jnp.take_along_axis(mask, jnp.clip(places, 0, last), axis=1)
        return found & (places >= 0) & (places <= last)
    wanted = jnp.ravel(selector)[None, :] if selector.ndim < 2 else selector
    end = at.last[:, None] + 1
    rows = max(wanted.shape[0], end.shape[0])
    wanted = jnp.broadcast_to(wanted, (rows, wanted.shape[1]))
    wanted = jnp.where(wanted < 0, wanted + end, wanted)
    return jnp.any(positions[:, :, None] == wanted[:, None, :], axis=-1)


def _head_axis(at: At) -> int:
    if len(at.axes) != 4 or "S" not in at.axes and at.axes[:2] != ("B", "T"):
        raise TypeError("this site has no heads")
    return 1 if "S" in at.axes else 2


def _on_axes(mask: Array, axes: tuple[int, ...], ndim: int) -> Array:
    """Returns a mask whose dimensions are those of a value."""
    shape = [1] * ndim
    for axis, size in zip(axes, mask.shape, strict=True):
        shape[axis] = size
    return mask.reshape(shape)
