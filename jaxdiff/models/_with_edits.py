"""Edits that stay: a model that carries them is a model like any other."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxdiff.errors import JaxdiffError, nearest
from jaxdiff.models._check import check_edits, differs_between_rows, name_of
from jaxdiff.models._lm import LM
from jaxdiff.models._sites import whole_block
from jaxdiff.models._tap import Edit


def with_edits(lm: LM, edits: Sequence[Edit], name: str = "") -> LM:
    """Returns the model with edits of its own, after those that it has.

        steered = with_edits(lm, (edit("blocks.8.resid_post", Add(vector, 4.0)),))
        generate(steered, prompts, 32), compare(lm, steered, tokens), sweep(steered, ...)

    Everything that runs the model applies them first, and then the edits of its call. They are
    leaves of the model: another vector compiles nothing anew, and `jax.grad(..., allow_int=True)`
    by the model has its gradient. `dataclasses.replace(lm, edits=())` takes all of them off.

    Under a name they can be chosen for each row (`chosen`); until then they apply to all rows.

    Args:
        lm: The model.
        edits: Edits, as in `run`.
        name: What they are called; when empty they keep the names that they have, as those do that
            `edits.load` reads.

    Raises:
        JaxdiffError: If the model has no such site, or has edits of that name, or one of them
            cannot be chosen for each row.
    """
    check_edits(lm.spec, edits)
    if name:
        edits = tuple(_named(edit, name) for edit in edits)
    _check_names(lm, edits)
    return replace(lm, edits=(*lm.edits, *edits))


def chosen(lm: LM, rows: Sequence[Sequence[str]]) -> LM:
    """Returns the model with a choice, for each row of a batch, among its edits that have names.

        lm = with_edits(with_edits(lm, polite, name="polite"), terse, name="terse")
        generate(chosen(lm, [("polite",), (), ("terse", "polite")]), prompts, 32)

    A row computes what it does in a model without the edits that it does not choose, whatever the
    others choose. Edits without a name apply to all rows, and the order of edits is that of the
    model. The choice is a leaf of the model: another one compiles nothing anew.

    Args:
        lm: A model that carries edits with names.
        rows: Names for each row of the batches to come.

    Raises:
        JaxdiffError: If the model has no edits of a name.
    """
    known = dict.fromkeys(name for each in lm.edits if (name := name_of(each)))
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise JaxdiffError(
            f"rows are {rows!r}", where="chosen", fix="give names for each row: [('name',), ()]"
        )
    rows = list(rows)
    for i, names in enumerate(rows):
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise JaxdiffError(
                f"row {i} is {names!r}", where="chosen", fix="a row is a tuple of names: ('name',)"
            )
        for name in names:
            if name not in known:
                raise _unknown(name, i, tuple(known))

    def choose(edit: Any) -> Any:
        name = name_of(edit)
        return replace(edit, rows=np.array([name in own for own in rows], bool)) if name else edit

    return replace(lm, edits=tuple(map(choose, lm.edits)))


def _named(edit: Any, name: str) -> Any:
    if hasattr(edit, "name") and hasattr(edit, "rows"):
        return replace(edit, name=name)
    raise JaxdiffError(
        f"{type(edit).__name__} has no place for a name and no rows",
        where=edit.site,
        fix=f'give it as the op: edit("{edit.site}", op)',
    )


def _check_names(lm: LM, edits: Sequence[Edit]) -> None:
    """Refuses a name that is taken, and edits that cannot be chosen for each row."""
    taken = {name_of(edit) for edit in lm.edits}
    for edit in edits:
        name = name_of(edit)
        if name and name in taken:
            raise JaxdiffError(
                f"the model has edits called {name!r} already",
                where="with_edits",
                fix="choose another name, or take them off: replace(lm, edits=...)",
            )
        if name and (whole_block(edit.site) or differs_between_rows(edit)):
            raise JaxdiffError(
                f"{name!r} is chosen row by row, and this edit skips a whole block or differs "
                "between rows by itself",
                where=edit.site,
                fix="leave the name out, or make it the same for all rows",
            )


def _unknown(name: str, row: int, known: tuple[str, ...]) -> JaxdiffError:
    return JaxdiffError(
        f"the model has no edits called {name!r}, which row {row} chooses",
        where="chosen",
        fix=nearest(name, known) or "with_edits(lm, edits, name=...) gives a name to edits",
    )
