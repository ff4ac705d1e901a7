"""What is asked of a run, checked before anything is traced."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._lm import LM
from jaxdiff.models._plan import HIDDEN_BY_FUSED
from jaxdiff.models._sites import HEADS, canonical_site, layer_and_part, sites, whole_block
from jaxdiff.models._tap import Edit, Reducer, Tap, View, as_pytree
from jaxdiff.models.spec import ModelConfig
from jaxdiff.types import HostOrDevice

_log = logging.getLogger(__name__)


class Checked(NamedTuple):
    """What programs are given.

    Attributes:
        lm: The model without what is said about it, and without its edits, which are among `edits`:
            models that differ in nothing else share programs.
        taps: Taps by canonical site.
        edits: Edits by canonical site.
        skipped: Blocks that edits skip.
    """

    lm: LM
    taps: tuple[Tap, ...]
    edits: tuple[Edit, ...]
    skipped: frozenset[int]


def checked(
    lm: LM,
    taps: Sequence[str | Tap],
    edits: Sequence[Edit],
    tokens: HostOrDevice,
    attention: str = "plain",
    *,
    own_positions: bool = False,
) -> Checked:
    """Returns what is asked by canonical names, the model's own edits first.

    Args:
        lm: The model.
        taps: What is read.
        edits: What is changed.
        tokens: What the model runs.
        attention: Kind of attention.
        own_positions: Whether positions are not those of the rows, and so cannot be checked here.

    Raises:
        JaxdiffError: If the tokens are none, a site or a position does not exist, a leaf is no
            number, a tap's name is taken, or the fused kernel cannot do what is asked.
    """
    spec = lm.spec
    _check_tokens(tokens)
    if isinstance(taps, str) or not isinstance(taps, Sequence):
        raise JaxdiffError("taps are a tuple", fix="put one into a tuple: (tap,)")
    check_edits(spec, edits)
    edits = (*lm.edits, *edits)
    skipped = frozenset(_skipped(spec, edit) for edit in edits if whole_block(edit.site))
    kept = tuple(_canonical(spec, edit) for edit in edits if not whole_block(edit.site))
    named = tuple(_tap(spec, tap) for tap in taps)
    names = [tap.name for tap in named]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise JaxdiffError(
            f"several taps are called {', '.join(twice)}", where="taps", fix="give each a `name`"
        )
    _check_skipped(skipped, named, kept)
    for each in (*named, *kept):
        check_leaves(each, each.site)
    _check_numbers(spec, kept, tokens, own_positions)
    _check_attention(spec, (*named, *kept), attention)
    return Checked(replace(lm, edits=(), changes=()), named, kept, skipped)


def check_edits(spec: ModelConfig, edits: Sequence[Edit]) -> None:
    """Refuses what are no edits, and edits of sites that the model does not have."""
    if not isinstance(edits, Sequence):
        raise JaxdiffError("edits are a tuple", fix="put one into a tuple: (edit,)")
    for edit in edits:
        if not isinstance(edit, Edit):
            raise JaxdiffError(
                f"{type(edit).__name__} is no edit", where="edits", fix="edits.edit(site, op)"
            )
        if whole_block(edit.site):
            _skipped(spec, edit)
        else:
            canonical_site(spec, edit.site)


def check_no_rows(lm: LM, where: str) -> None:
    """Refuses a model that carries an edit of some rows, where rows are not those of the caller."""
    for edit in lm.edits:
        if differs_between_rows(edit):
            raise JaxdiffError(
                f"the model carries an edit of {edit.site} that differs between rows, and rows are "
                "put together anew here",
                where=where,
                fix="leave it out, or make it the same for all rows",
            )


def differs_between_rows(edit: Edit) -> bool:
    """Returns whether an edit selects rows, has positions for each row, or reads other rows."""
    own = (getattr(edit, "rows", None), getattr(getattr(edit, "op", None), "row", None))
    positions = getattr(edit, "positions", None)
    return any(each is not None for each in own) or getattr(positions, "ndim", 0) == 2


def name_of(edit: Edit) -> str:
    """Returns the name by which rows choose an edit; an edit without rows has none."""
    return getattr(edit, "name", "") if hasattr(edit, "rows") else ""


def unnamed(lm: LM) -> LM:
    """Returns the model without what is said about it: programs do not depend on that."""
    edits = tuple(replace(edit, name="") if name_of(edit) else edit for edit in lm.edits)
    return replace(lm, edits=edits, changes=())


def _canonical(spec: ModelConfig, edit: Any) -> Any:
    """Returns an edit by the canonical name of its site, and none of its own."""
    own = {"name": ""} if name_of(edit) else {}
    return replace(edit, site=canonical_site(spec, edit.site), **own)


def _tap(spec: ModelConfig, tap: str | Tap) -> Tap:
    tap = Tap(tap) if isinstance(tap, str) else tap
    if not isinstance(tap, Tap):
        raise JaxdiffError(f"{type(tap).__name__} is no tap", where="taps", fix="models.Tap(site)")
    site = canonical_site(spec, tap.site)
    for name, part in (("reduce", tap.reduce), ("view", tap.view)):
        if isinstance(part, type) or part is not None and not isinstance(part, _PARTS[name]):
            raise JaxdiffError(
                f"{name}={part!r} is an object that is called with the value",
                where=tap.site,
                fix=f"write {part.__name__}(...)" if isinstance(part, type) else "",
            )
    reduce = None if tap.reduce is None else as_pytree(tap.reduce)
    return replace(tap, site=site, reduce=reduce, name=tap.name or tap.site)


_PARTS = {"reduce": Reducer, "view": View}


def check_leaves(tree: Any, where: str) -> None:
    """Refuses leaves that no program can have as arguments."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not isinstance(leaf, NUMBERS):
            name = jax.tree_util.keystr(path).lstrip(".")
            raise JaxdiffError(f"{name} is {leaf!r}, which is no number and no array", where=where)


NUMBERS = (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic, int, float)
"""What a leaf can be."""


def _skipped(spec: ModelConfig, edit: Edit) -> int:
    layer = int(edit.site.removeprefix("blocks."))
    if layer >= spec.n_layers:
        raise JaxdiffError(
            f"there is no block {layer} in a model of {spec.n_layers}", where=edit.site
        )
    return layer


def _check_skipped(skipped: frozenset[int], taps: Sequence[Tap], edits: Sequence[Edit]) -> None:
    """Refuses what is asked of a block that is not computed."""
    if not skipped:
        return
    gone = {str(layer) for layer in skipped}
    lost = [t.site for t in taps if layer_and_part(t.site)[0] in gone | {"*"}]
    lost += [e.site for e in edits if layer_and_part(e.site)[0] in gone or _selects(e, skipped)]
    if lost:
        raise JaxdiffError(
            f"a block that is skipped has no values: {', '.join(lost)}",
            where=f"Skip of {', '.join(f'blocks.{layer}' for layer in sorted(skipped))}",
            fix="name the sites of other blocks, one by one",
        )


def _selects(edit: Any, layers: frozenset[int]) -> bool:
    """Returns whether an edit of all blocks names one of these, as far as the host knows."""
    selector = getattr(edit, "layers", None)
    if selector is None or isinstance(selector, jax.Array):
        return False
    numbers = np.asarray(selector)
    named = np.flatnonzero(numbers) if numbers.dtype == bool else np.ravel(numbers)
    return not layers.isdisjoint(named.tolist())


def _check_tokens(tokens: Any) -> None:
    """Refuses what is no batch of token ids."""
    shape, dtype = getattr(tokens, "shape", None), getattr(tokens, "dtype", None)
    if shape is None or dtype is None:
        given = type(tokens).__name__
    elif len(shape) != 2 or not np.issubdtype(dtype, np.integer):
        given = f"{dtype}{list(shape)}"
    else:
        return
    raise JaxdiffError(
        f"tokens are an integer array [B, T], not {given}",
        where="tokens",
        fix="np.asarray(ids)[None] makes a batch of one text",
    )


def _check_numbers(
    spec: ModelConfig, edits: Sequence[Any], tokens: HostOrDevice, own_positions: bool
) -> None:
    """Refuses layers, heads, positions and rows that do not exist, where the host knows them."""
    for edit in edits:
        sizes = {"layers": spec.n_layers, "positions": tokens.shape[1], "rows": tokens.shape[0]}
        heads = sites(spec)[edit.site.replace(".*.", ".0.")]
        numbers = {name: getattr(edit, name, None) for name in (*sizes, "heads")}
        # The rows that an op reads must be there as well as those that it changes.
        numbers["row"], sizes["row"] = (
            getattr(getattr(edit, "op", None), "row", None),
            tokens.shape[0],
        )
        if numbers["heads"] is not None:
            part = layer_and_part(edit.site)[1]
            if part not in HEADS:
                raise JaxdiffError(
                    "this site has no heads", where=edit.site, fix=f"these have: {', '.join(HEADS)}"
                )
            sizes["heads"] = int(heads[HEADS[part]])
        for name, size in sizes.items():
            value = numbers[name]
            if value is None or isinstance(value, jax.Array):
                continue
            if name == "positions" and own_positions:
                continue
            value = np.asarray(value)
            if value.dtype == bool:
                bad = [] if value.shape[-1] == size else [f"a mask of {value.shape[-1]}"]
            else:
                bad = [str(v) for v in np.ravel(value) if not -size <= v < size]
            if bad:
                raise JaxdiffError(
                    f"this edit's {name} are outside of the {_OF[name]}: {', '.join(bad)}",
                    where=edit.site,
                    fix=f"there are {size}",
                )


_OF = {"layers": "model", "heads": "model"} | dict.fromkeys(("positions", "rows", "row"), "batch")


def _check_attention(spec: ModelConfig, asked: Sequence[Any], attention: str) -> None:
    if attention not in ("plain", "fused"):
        raise JaxdiffError(f"attention={attention!r}", fix="it is 'plain' or 'fused'")
    if attention == "plain":
        return
    if spec.attention_softcap is not None:
        raise JaxdiffError(
            f"the fused attention has no soft cap, which {spec.architecture} needs",
            where="attention",
            fix="use attention='plain'",
        )
    hidden = [a.site for a in asked if layer_and_part(a.site)[1] in HIDDEN_BY_FUSED]
    if hidden:
        _log.warning(
            "the fused attention hides %s: these blocks use the plain one", ", ".join(hidden)
        )
