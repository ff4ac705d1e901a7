"""What is asked of a run, checked before anything is traced."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._plan import HIDDEN_BY_FUSED
from jaxdiff.models._sites import HEADS, canonical_site, layer_and_part, sites
from jaxdiff.models._tap import Edit, Tap
from jaxdiff.models.spec import ModelConfig
from jaxdiff.types import HostOrDevice

_log = logging.getLogger(__name__)


class Checked(NamedTuple):
    """Taps and edits by canonical site, and the blocks that edits skip."""

    taps: tuple[Tap, ...]
    edits: tuple[Edit, ...]
    skipped: frozenset[int]


def checked(
    spec: ModelConfig,
    taps: Sequence[str | Tap],
    edits: Sequence[Edit],
    tokens: HostOrDevice,
    attention: str = "plain",
    *,
    own_positions: bool = False,
) -> Checked:
    """Returns what is asked by canonical names.

    Args:
        spec: The model.
        taps: What is read.
        edits: What is changed.
        tokens: What the model runs.
        attention: Kind of attention.
        own_positions: Whether positions are not those of the rows, and so cannot be checked here.

    Raises:
        JaxdiffError: If the tokens are none, a site or a position does not exist, a tap's name is
            taken, or the fused kernel cannot do what is asked.
    """
    _check_tokens(tokens)
    if isinstance(taps, str) or not (isinstance(taps, Sequence) and isinstance(edits, Sequence)):
        raise JaxdiffError("taps and edits are tuples", fix="put one into a tuple: (tap,)")
    strange = [edit for edit in edits if not isinstance(edit, Edit)]
    if strange:
        raise JaxdiffError(
            f"{type(strange[0]).__name__} is no edit", where="edits", fix="edits.edit(site, op)"
        )
    skipped = frozenset(_skipped(spec, edit) for edit in edits if _whole_block(edit.site))
    kept = tuple(
        replace(edit, site=canonical_site(spec, edit.site))  # pyright: ignore[reportArgumentType]
        for edit in edits
        if not _whole_block(edit.site)
    )
    named = tuple(_tap(spec, tap) for tap in taps)
    names = [tap.name for tap in named]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise JaxdiffError(
            f"several taps are called {', '.join(twice)}", where="taps", fix="give each a `name`"
        )
    _check_skipped(skipped, named, kept)
    _check_numbers(spec, kept, tokens, own_positions)
    _check_attention(spec, (*named, *kept), attention)
    return Checked(named, kept, skipped)


def _tap(spec: ModelConfig, tap: str | Tap) -> Tap:
    tap = Tap(tap) if isinstance(tap, str) else tap
    return replace(tap, site=canonical_site(spec, tap.site), name=tap.name or tap.site)


def _whole_block(site: str) -> bool:
    return re.fullmatch(r"blocks\.\d+", site) is not None


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
