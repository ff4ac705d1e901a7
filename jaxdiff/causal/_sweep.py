"""Sweeps: one program for a grid of edits over layers, positions, heads, sources and strengths."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.causal._cells import cells_of, grid, with_axes
from jaxdiff.edits import Edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, ModelConfig, Tap, stack
from jaxdiff.models._check import checked
from jaxdiff.models._forward import Visitor, between_layers
from jaxdiff.models._run import embed, forward, unembed, world_of
from jaxdiff.models._sites import canonical_site, layer_and_part
from jaxdiff.models._traces import traced
from jaxdiff.types import HostOrDevice

Metric = Callable[[Float[Array, "B V"]], Any]
_PRE = "blocks.*.resid_pre"


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

    Cells are rows of one batch, chunked to a memory bound. Where the edit is in one layer, the
    blocks before it are computed once for all cells (half of the work of a sweep over all layers),
    and the layer is an argument of the program. Weights that are apart are stacked first.

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
        memory: Bound on the activations of the cells that run at once [bytes].

    Returns:
        What the metric returns, with the axes of `over` before its own.

    Raises:
        JaxdiffError: If the edit has no such leaf or does not fit, or an axis is empty.
    """
    over = {name: _axis(name, values) for name, values in over.items()}
    edit = with_axes(edit, over)
    _check(lm.spec, edit, tokens, over)
    asked = checked(lm.spec, (), (*edits, edit), tokens)
    if asked.skipped:
        raise JaxdiffError(
            "a sweep cannot skip blocks", where="sweep", fix="Scale attn_out, mlp_out"
        )
    *fixed, edit = cast(tuple[Edit, ...], asked.edits)
    if jax.tree_util.all_leaves([metric]):
        metric = jax.tree_util.Partial(metric)
    return _sweep(
        lm,
        tokens,
        edit,
        tuple(fixed),
        {name: jnp.asarray(values) for name, values in over.items()},
        metric,
        sequences,
        positions,
        order=tuple(over),
        chunk=max(1, memory // _bytes(lm.spec, tokens.shape)),
    )


@functools.partial(jax.jit, static_argnames=("order", "chunk"))
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
) -> Any:
    lm = stack(lm)
    fixed = tuple(_in_any_layer(each) for each in fixed)
    over = {name: over[name] for name in order}
    layer, _ = layer_and_part(edit.site)
    layers = over.pop("layers", None)
    rest, count = grid(over) if over else ({}, 1)
    chunks = _chunked(rest, count, chunk)

    if layers is None and layer not in ("", "*"):
        layers = jnp.asarray([int(layer)])
    edit = _in_any_layer(edit)
    if layers is None:
        out = _mapped(
            lambda own: _cells(lm, tokens, edit, fixed, own, metric, sequences, positions), chunks
        )
        scores = _unchunk(out, count)
    else:
        clean = _clean(lm, tokens, fixed, sequences, positions)

        def at_layer(number: Array) -> Any:
            start = jax.lax.dynamic_index_in_dim(clean, number, 0, keepdims=False)
            here = replace(edit, layers=number)
            out = _mapped(
                lambda own: _cells(
                    lm, tokens, here, fixed, own, metric, sequences, positions, (start, number)
                ),
                chunks,
            )
            return _unchunk(out, count)

        scores = jax.lax.map(at_layer, layers)
    return _arranged(scores, layers if "layers" in order else None, over, order, layers is not None)


def _clean(lm: LM, tokens: Array, fixed: tuple[Edit, ...], sequences: Any, positions: Any) -> Array:
    """Returns the stream before every block, without the edit: `[N, B, T, D]`."""
    world = world_of(lm, tokens, (Tap(_PRE, name=_PRE),), fixed, sequences, positions)
    kept = forward((world,), (tokens,), logits=False, length=tokens.shape[1])[1]
    return kept.worlds[0][_PRE]


def _cells(
    lm: LM,
    tokens: Array,
    edit: Edit,
    fixed: tuple[Edit, ...],
    own: dict[str, Array],
    metric: Metric,
    sequences: Any,
    positions: Any,
    start: tuple[Array, Array] | None = None,
) -> Any:
    """Runs the cells of one chunk, from the stream at a layer on if `start` has one."""
    cells = jax.tree.leaves(own)[0].shape[0] if own else 1
    length = tokens.shape[1]

    def tiled(x: Any) -> Any:
        return None if x is None else jnp.tile(x, (cells, *(1,) * (x.ndim - 1)))

    # Edits that all cells share are mapped too: their rows are those of one cell.
    others = tuple(cells_of(each, {}, cells) for each in fixed)
    rows, places = tiled(sequences), tiled(positions)
    plain = world_of(lm, tiled(jnp.asarray(tokens)), (), others, rows, places)
    edited = replace(plain, edits=(*others, cells_of(edit, own, cells)))
    if start is None:
        x = embed(Visitor((edited,), ()), 0, tiled(jnp.asarray(tokens)))
        x = between_layers(edited, x, 0, lm.spec.n_layers, length=length)
        end = edited
    else:
        x, layer = tiled(start[0]), start[1]
        x = between_layers(edited, x, layer, layer + 1, length=length)
        x = between_layers(plain, x, layer + 1, lm.spec.n_layers, length=length)
        end = plain
    logits = unembed(Visitor((end,), ()), 0, x, "last")
    assert logits is not None
    return jax.vmap(metric)(logits.reshape(cells, -1, logits.shape[-1]))


def _chunked(leaves: dict[str, Array], count: int, chunk: int) -> dict[str, Array]:
    """Returns `[chunks, cells, ...]`; the last chunk is filled up with its last cell."""
    chunk = math.ceil(count / math.ceil(count / chunk))
    places = np.minimum(np.arange(math.ceil(count / chunk) * chunk), count - 1)
    return {name: leaf[places].reshape(-1, chunk, *leaf.shape[1:]) for name, leaf in leaves.items()}


def _mapped(f: Callable[[dict[str, Array]], Any], chunks: dict[str, Array]) -> Any:
    """Maps over chunks; where nothing but the layer is swept, there is one cell without leaves."""
    return jax.lax.map(f, chunks) if chunks else jax.tree.map(lambda x: x[None], f(chunks))


def _unchunk(out: Any, count: int) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], out)


def _arranged(
    scores: Any, layers: Array | None, over: dict[str, Array], order: tuple[str, ...], leading: bool
) -> Any:
    """Gives the axes the order in which they were asked for."""
    sizes = [values.shape[0] for values in over.values()]

    def arrange(x: Array) -> Array:
        own = x.shape[2:] if leading else x.shape[1:]
        if layers is None:
            return x.reshape(*sizes, *own)
        x = x.reshape(layers.shape[0], *sizes, *own)
        return jnp.moveaxis(x, 0, order.index("layers"))

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


def _check(spec: ModelConfig, edit: Edit, tokens: HostOrDevice, over: Mapping[str, Any]) -> None:
    """Refuses values of the host that are outside of the model or the batch."""
    if "layers" in over and layer_and_part(canonical_site(spec, edit.site))[0] != "*":
        raise JaxdiffError(
            "layers can be swept at a `*` site only", where=edit.site, fix="write blocks.*.…"
        )
    sizes = {"layers": spec.n_layers, "positions": tokens.shape[1], "rows": tokens.shape[0]}
    for name, size in sizes.items():
        values = over.get(name)
        if values is None or isinstance(values, jax.Array) or values.dtype == bool:
            continue
        low = 0 if name == "layers" else -size
        outside = values[(values < low) | (values >= size)]
        if outside.size:
            raise JaxdiffError(
                f"{name} to sweep over are outside of the model or batch: {outside.ravel()[0]}",
                where="sweep: over",
                fix=f"there are {size} {name}",
            )


def _bytes(spec: ModelConfig, shape: tuple[int, ...]) -> int:
    """Returns about what the activations of one cell take at their widest, in float32."""
    b, t = shape
    hidden = spec.d_mlp * max(spec.experts_per_token, 1) * 3
    scores = spec.n_heads * t * 3
    return 4 * b * (t * (6 * spec.d_model + max(hidden, scores)) + 2 * spec.vocab_size)
