"""A grid of edits as rows of one batch: the model sees more rows, and only the edit is mapped."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdiff.edits import Edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import At

SELECTORS = frozenset({"layers", "positions", "rows", "heads", "steps"})
"""Fields of an edit that say where it applies."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cells:
    """An edit of C cells of B rows each, whose swept leaves differ from cell to cell.

    Attributes:
        site: Where.
        structure: Structure of the edit.
        names: Dotted path of each of its leaves.
        leaves: Its leaves by dotted path; those in `swept` have a leading axis C.
        swept: Paths of the leaves that differ.
        cells: C.
    """

    leaves: dict[str, Any]
    site: str = field(metadata={"static": True})
    structure: Any = field(metadata={"static": True})
    names: tuple[str, ...] = field(metadata={"static": True})
    swept: tuple[str, ...] = field(metadata={"static": True})
    cells: int = field(metadata={"static": True})

    def __call__(self, value: Array, at: At) -> Array:
        """Applies each cell's own edit to its rows."""
        rows = value.shape[0] // self.cells

        def apply(value: Array, own: dict[str, Any]) -> Array:
            leaves = [own.get(name, self.leaves[name]) for name in self.names]
            return jax.tree.unflatten(self.structure, leaves)(value, one_cell)

        # All cells read the same texts, so the first one's places are everyone's.
        one_cell = replace(
            at,
            positions=at.positions[:rows],
            last=at.last[:rows],
            real=None if at.real is None else at.real[:rows],
        )
        by_cell = value.reshape(self.cells, rows, *value.shape[1:])
        own = {name: self.leaves[name] for name in self.swept}
        return jax.vmap(apply, axis_size=self.cells)(by_cell, own).reshape(value.shape)


def cells_of(edit: Edit, swept: Mapping[str, Array], cells: int) -> Cells:
    """Returns C cells of an edit; the leaves in `swept` are replaced by theirs, `[C, ...]`."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(edit)
    named = {path_name(path): leaf for path, leaf in leaves}
    return Cells(
        leaves=named | dict(swept),
        site=edit.site,
        structure=structure,
        names=tuple(named),
        swept=tuple(swept),
        cells=cells,
    )


def with_axes(edit: Edit, over: Mapping[str, Any]) -> Edit:
    """Returns the edit with a leaf wherever `over` names one, also selectors that were left open.

    Raises:
        JaxdiffError: If the edit has no such leaf.
    """
    opened = {n: np.int32(0) for n in over if n in SELECTORS and getattr(edit, n) is None}
    edit = replace(edit, **opened)
    known = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(edit)[0]]
    unknown = sorted(set(over) - set(known))
    if unknown:
        raise JaxdiffError(
            f"this edit has no leaf called {', '.join(unknown)}",
            where="sweep: over",
            fix=f"leaves are {', '.join([*sorted(SELECTORS), *sorted(set(known) - SELECTORS)])}",
        )
    return edit


def grid(over: Mapping[str, Array]) -> tuple[dict[str, Array], int]:
    """Returns the leaves of all cells, `[C, ...]` each; the last axis of the grid runs fastest."""
    sizes = [values.shape[0] for values in over.values()]
    total = math.prod(sizes)
    leaves, before, after = {}, 1, total
    for (name, values), size in zip(over.items(), sizes, strict=True):
        after //= size
        leaves[name] = jnp.tile(
            jnp.repeat(values, after, axis=0), (before, *(1,) * (values.ndim - 1))
        )
        before *= size
    return leaves, total


def path_name(path: tuple[Any, ...]) -> str:
    """Returns the dotted name of a leaf, like `op.vector`."""
    return ".".join(str(getattr(key, "name", getattr(key, "key", key))) for key in path)
