"""Sweeps: one program for a grid of edits over layers, positions, heads, sources and strengths."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.causal._cell_runs import Base, chunked, clean_run, from_layer, whole
from jaxdiff.causal._cells import SELECTORS, grid, with_axes
from jaxdiff.edits import Edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, ModelConfig, stack
from jaxdiff.models._check import Checked, checked
from jaxdiff.models._prompts import on_host
from jaxdiff.models._sites import canonical_site, layer_and_part
from jaxdiff.models._tap import as_pytree
from jaxdiff.models._traces import traced
from jaxdiff.types import HostOrDevice

Metric = Callable[[Float[Array, "B V"]], Any]
Groups = tuple[tuple[int, tuple[int, ...]], ...]
"""First token that a group of cells runs, and the places of its positions on their axis."""


def sweep(
    lm: LM,
    tokens: Int[HostOrDevice, "B T"],
    edit: Edit,
    metric: Metric,
    over: Mapping[str, Any],
    *,
    edits: Sequence[Edit] = (),
    sequences: Int[HostOrDevice, "B T"] | None = None,
    positions: Int[HostOrDevice, "B T"] | None = None,
    memory: int = 2**29,
) -> Any:
    """Measures an edit over a grid of its leaves, as one program.

        scores = sweep(lm, corrupt, edit("blocks.*.resid_post", PerLayer(Set(clean))), metric,
                       {"layers": np.arange(12), "positions": np.arange(16)})   # [12, 16, B]

    Cells are rows of one batch, chunked to a memory bound. What an edit cannot change is computed
    once for all cells: the blocks before a layer that is swept, and the tokens before a position.
    Layers, vectors and strengths are arguments of the program; so are positions if they are a
    `jax.Array`, but only those of the host are known beforehand, and spare the tokens before them.
    Weights that are apart are stacked first.

    Args:
        lm: The model.
        tokens: Token ids, the same for all cells.
        edit: The edit of every cell but for the leaves that are swept.
        metric: Of the logits of each row's last token; a pytree is traced, a plain function is part
            of the program.
        over: Values of leaves by name, each with its own leading axis: a selector (`layers`,
            `positions`, `rows`, `heads`), or a path like `op.strength` or `view.latents`.
        edits: Edits that all cells have besides, applied before.
        sequences: Document of each token, as in `models.run`.
        positions: Position of each token, as in `models.run`.
        memory: Bound on the activations of the cells that run at once [bytes]; a gradient keeps
            those of all cells.

    Returns:
        What the metric returns, with the axes of `over` before its own.

    Raises:
        JaxdiffError: If the edit has no such leaf or does not fit, or an axis is empty.
    """
    over = {name: _axis(name, values) for name, values in over.items()}
    edit = with_axes(edit, over)
    _check_axes(lm.spec, edit, over)
    # The edit with all values of its axes: they are checked as its selectors.
    known = {name: on_host(over[name]) for name in SELECTORS.intersection(over)}
    wide = replace(edit, **{n: over[n] if v is None else v for n, v in known.items()})
    asked = checked(lm, (), (*edits, wide), tokens, own_positions=positions is not None)
    _check_can_be_swept(asked)
    *fixed, wide = cast(tuple[Edit, ...], asked.edits)
    edit = replace(edit, site=wide.site)
    if "layers" in over:
        layers = over["layers"]
        over["layers"] = layers + lm.spec.n_layers * (layers < 0)
    groups: Groups = ()
    if sequences is None and positions is None and not fixed:
        groups = _groups(over.get("positions"), tokens.shape[1])
    return _sweep(
        asked.lm,
        jnp.asarray(tokens),
        edit,
        tuple(fixed),
        {name: jnp.asarray(values) for name, values in over.items()},
        as_pytree(metric),
        sequences,
        positions,
        order=tuple(over),
        chunk=max(1, memory // _bytes(lm.spec, tokens.shape)),
        groups=groups,
    )


def _groups(positions: Any, length: int) -> Groups:
    """Sorts positions that the host knows into groups that start at the same token."""
    if positions is None or isinstance(positions, jax.Array) or positions.ndim != 1:
        return ()
    # Few tokens make small products: more groups would cost more than they spare.
    pieces = 4 if length >= 32 else 2
    places = np.where(positions < 0, positions + length, positions)
    piece = places * pieces // length
    return tuple(
        (int(places[piece == p].min()), tuple(np.flatnonzero(piece == p).tolist()))
        for p in np.unique(piece)
    )


@functools.partial(jax.jit, static_argnames=("order", "chunk", "groups"))
@traced("sweep")
def _sweep(
    lm: LM,
    tokens: Array,
    edit: Edit,
    fixed: tuple[Edit, ...],
    over: dict[str, Array],
    metric: Metric,
    sequences: Array | None,
    positions: Array | None,
    *,
    order: tuple[str, ...],
    chunk: int,
    groups: Groups,
) -> Any:
    base = Base(stack(lm), tokens, tuple(_in_any_layer(e) for e in fixed), sequences, positions)
    layer, _ = layer_and_part(edit.site)
    edit = _in_any_layer(edit)
    over = {name: over[name] for name in order}
    layers = over.pop("layers", None)
    if layers is None and layer not in ("", "*"):
        layers = jnp.asarray([int(layer)])

    if layers is None:
        run = functools.partial(whole, base, edit, metric)
        (scores,) = chunked(run, [grid(over)], chunk)
        return _arranged(jax.tree.map(lambda x: x[None], scores), over, order)

    starts, parts = _split(over, groups)
    clean = clean_run(base, cached=any(starts))
    grids = [grid(part) for part in parts]

    def at_layer(number: Array) -> tuple[Any, ...]:
        here = replace(edit, layers=number)
        run = functools.partial(from_layer, base, clean, here, number, starts, metric)
        return tuple(chunked(run, grids, chunk))

    scores = jax.lax.map(at_layer, layers)
    arranged = [_arranged(each, part, order) for each, part in zip(scores, parts, strict=True)]
    if len(arranged) == 1:
        return arranged[0]
    back = np.argsort(np.concatenate([np.asarray(places) for _, places in groups]))
    axis = order.index("positions")
    return jax.tree.map(
        lambda *pieces: jnp.take(jnp.concatenate(pieces, axis), back, axis=axis), *arranged
    )


def _split(
    over: dict[str, Array], groups: Groups
) -> tuple[tuple[int, ...], list[dict[str, Array]]]:
    """Returns the first token of each group, and its part of the axes."""
    if not groups:
        return (0,), [over]
    return tuple(start for start, _ in groups), [
        over | {"positions": over["positions"][np.asarray(places)]} for _, places in groups
    ]


def _arranged(scores: Any, over: dict[str, Array], order: tuple[str, ...]) -> Any:
    """Returns `[layers, cells, ...]` with the axes in the order in which they were asked for."""
    sizes = [values.shape[0] for values in over.values()]

    def arrange(x: Array) -> Array:
        x = x.reshape(x.shape[0], *sizes, *x.shape[2:])
        return jnp.moveaxis(x, 0, order.index("layers")) if "layers" in order else x[0]

    return jax.tree.map(arrange, scores)


def _in_any_layer(edit: Edit) -> Edit:
    """Returns an edit of one block as one of all blocks that selects it."""
    layer, part = layer_and_part(edit.site)
    if layer in ("", "*"):
        return edit
    return replace(edit, site=f"blocks.*.{part}", layers=jnp.int32(int(layer)))


def _axis(name: str, values: Any) -> Any:
    values = values if isinstance(values, jax.Array) else np.asarray(values)
    if values.ndim == 0 or values.shape[0] == 0:
        raise JaxdiffError(
            f"{name} has no axis to sweep over: its shape is {list(values.shape)}",
            where="sweep: over",
            fix="give an array of values, like np.arange(12)",
        )
    if name == "layers" and values.ndim != 1:
        raise JaxdiffError("layers are swept one at a time", where="sweep: over")
    return values


def _check_axes(spec: ModelConfig, edit: Edit, over: Mapping[str, Any]) -> None:
    """Refuses axes that are none; whether their values exist is checked as those of an edit are."""
    if "layers" in over and layer_and_part(canonical_site(spec, edit.site))[0] != "*":
        raise JaxdiffError(
            "layers can be swept at a `*` site only", where=edit.site, fix="write blocks.*.…"
        )
    for name in SELECTORS.intersection(over):
        values = over[name]
        if values.dtype == bool and values.ndim == 1:
            raise JaxdiffError(
                f"a mask of {name} selects, and is no axis",
                where="sweep: over",
                fix="give numbers, or several masks: one a row",
            )
        if values.dtype != bool and not jnp.issubdtype(values.dtype, jnp.integer):
            raise JaxdiffError(
                f"{name} are numbers or masks, not {values.dtype}", where="sweep: over"
            )


def _check_can_be_swept(asked: Checked) -> None:
    """Refuses skipped blocks, and edits whose layers a sweep cannot select."""
    if asked.skipped:
        raise JaxdiffError(
            "a sweep cannot skip blocks", where="sweep", fix="Scale attn_out, mlp_out"
        )
    for own in asked.edits:
        if not isinstance(own, Edit):
            raise JaxdiffError(
                f"in a sweep, edits are made by edits.edit, not {type(own).__name__}",
                where=own.site,
                fix=f'give it as the op: edit("{own.site}", op)',
            )


def _bytes(spec: ModelConfig, shape: tuple[int, ...]) -> int:
    """Returns about what the activations of one cell take at their widest, in float32."""
    b, t = shape
    hidden = spec.d_mlp * max(spec.experts_per_token, 1) * 3
    scores = spec.n_heads * t * 3
    return 4 * b * (t * (6 * spec.d_model + max(hidden, scores)) + 2 * spec.vocab_size)
