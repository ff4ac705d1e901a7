"""An edit: what is done to the value of a site, and at which layers, positions, rows, heads, steps.

The structure of an edit (site, op, which selectors there are) decides the program; everything else
is a leaf and may be traced: sweep it with `vmap`, differentiate it, train it.
"""

import re
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxdiff.edits import _select
from jaxdiff.edits._select import Selector
from jaxdiff.edits.ops import Skip
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import At, View
from jaxdiff.models._sites import HEADS, layer_and_part
from jaxdiff.models._tap import as_pytree


@runtime_checkable
class Op(Protocol):
    """Changes a value; a pytree."""

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the new value, of the same shape and dtype."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Edit:
    """What `edit` makes; `edit` says what the fields are, and `models.with_edits` names it."""

    site: str = field(metadata={"static": True})
    op: Any
    view: Any = None
    layers: Any = None
    positions: Any = None
    rows: Any = None
    heads: Any = None
    steps: Any = None
    name: str = field(default="", metadata={"static": True})

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the value with the op applied where the selectors say."""
        seen = value if self.view is None else self.view.get(value, at)
        new = self.op(seen, at)
        new = new if self.view is None else self.view.put(value, new, at)
        mask = self._mask(value, at)
        return new if mask is None else jnp.where(mask, new, value)

    def _mask(self, value: Array, at: At) -> Bool[Array, "..."] | None:
        """Returns where the edit applies, of the value's rank; None where it is everywhere."""
        b, masks = at.axes.index("B"), []

        def add(mask: Array, *axes: int) -> None:
            masks.append(_select.on_axes(mask, axes, value.ndim))

        if self.positions is not None:
            add(_select.tokens(self.positions, at), b, at.axes.index("T"))
        if self.rows is not None:
            add(_select.places(self.rows, value.shape[b]), b)
        if self.heads is not None:
            axis = HEADS.get(layer_and_part(self.site)[1])
            if axis is None:
                raise TypeError("this site has no heads")
            add(_select.places(self.heads, value.shape[axis]), axis)
        if self.layers is not None:
            add(_select.layer(self.layers, at))
        if self.steps is not None:
            add(_select.step(self.steps, at))
        return reduce(jnp.logical_and, masks) if masks else None


def edit(
    site: str,
    op: Any,
    *,
    view: Any = None,
    layers: Selector = None,
    positions: Selector = None,
    rows: Selector = None,
    heads: Selector = None,
    steps: Selector = None,
) -> Edit:
    """Makes an edit: `op` on the value of `site`, where all selectors agree.

    Selectors are numbers (one, or `[K]` of them; negative ones count from the end, but for steps)
    or masks, and None selects everything. They are leaves: another position or layer compiles
    nothing anew.

    Args:
        site: Where, by any name that `models.canonical_site` knows. `blocks.*.resid_post` is every
            block, or those that `layers` selects; `blocks.3` takes only `Skip`.
        op: What is done, an `Op`: `Set`, `Add`, `Scale`, ..., or a function `(value, at) -> value`
            that is a part of the program.
        view: What of the value the op sees, and how it is written back, a `models.View`.
        layers: Numbers of blocks, or a mask over them; for sites with a `*`.
        positions: Positions of tokens in their text, -1 for the last token of the row that is no
            padding; or `[B, K]`, for each row its own; or a mask `[T]` or `[B, T]` over positions.
        rows: Rows of the batch.
        heads: Heads; of the keys' and values' own at `attn.k` and `attn.v`.
        steps: Steps of generation: 0 is the prompt, s the s-th token that was generated.

    Raises:
        JaxdiffError: If the op is none, or `Skip` of something else than a block, or a selector is
            not what it can be.
    """
    if not isinstance(op, Op) or isinstance(op, type):
        raise JaxdiffError(
            f"an edit needs an op, not {op!r}", where=site, fix="for instance edits.Add(vector)"
        )
    if view is not None and (not isinstance(view, View) or isinstance(view, type)):
        raise JaxdiffError(
            f"{view!r} is no view", where=site, fix="for instance edits.Subspace(vectors)"
        )
    given = {
        "layers": layers,
        "positions": positions,
        "rows": rows,
        "heads": heads,
        "steps": steps,
    }
    _check_block(site, op, view, given)
    if layers is not None and "*" not in site:
        raise JaxdiffError(
            "layers select among the blocks of a `*` site",
            where=site,
            fix="write blocks.*.… for the site, or leave layers out",
        )
    numbers = {name: _selector(name, s, site) for name, s in given.items()}
    return Edit(site, _arrays(as_pytree(op)), _arrays(view), **numbers)


def _check_block(site: str, op: Any, view: Any, selectors: dict[str, Selector]) -> None:
    whole = re.fullmatch(r"blocks\.(\d+|\*)", site) is not None
    if whole != isinstance(op, Skip) or site == "blocks.*":
        raise JaxdiffError(
            "Skip is for one whole block, and a whole block takes nothing else",
            where=site,
            fix='edit("blocks.3", Skip()), or name a site inside of the block',
        )
    if whole and (view is not None or any(s is not None for s in selectors.values())):
        raise JaxdiffError(
            "a block is skipped for all tokens or not at all",
            where=site,
            fix="to skip it for some, set its attn_out and mlp_out to 0 there",
        )


def _arrays(tree: Any) -> Any:
    """Makes arrays of lists: as a pytree, a list would be many leaves."""
    return jax.tree.map(_array, tree, is_leaf=lambda leaf: isinstance(leaf, list))


def _array(leaf: Any) -> Any:
    if not isinstance(leaf, list):
        return leaf
    traced = any(isinstance(part, jax.Array) for part in jax.tree.leaves(leaf))
    return jnp.asarray(leaf) if traced else np.asarray(leaf)


def _selector(name: str, value: Selector, site: str) -> Any:
    """Returns numbers as they are traced: those of the host stay there, to be checked."""
    if value is None:
        return None
    numbers = value if isinstance(value, jax.Array) else np.asarray(value)
    if isinstance(numbers, np.ndarray) and not numbers.size:
        numbers = numbers.astype(np.int32)
    if numbers.dtype != bool and not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise JaxdiffError(f"{name} are numbers or a mask, not {numbers.dtype}", where=site)
    if numbers.ndim > (2 if name == "positions" else 1):
        raise JaxdiffError(f"{name} of {numbers.ndim} dimensions", where=site)
    if isinstance(numbers, jax.Array) or numbers.dtype == bool:
        return numbers
    if name == "steps" and (numbers < 0).any():
        raise JaxdiffError("steps are counted from 0, the prompt", where=site)
    return numbers.astype(np.int32)
