"""Runs of the cells of a sweep: from the stream at a layer on, and from a token on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.causal._cells import cells_of
from jaxdiff.edits import Edit
from jaxdiff.models import LM, Tap
from jaxdiff.models._context import context, place
from jaxdiff.models._forward import Visitor, World, between_layers
from jaxdiff.models._run import embed, forward, unembed, world_of
from jaxdiff.models._sites import layer_and_part
from jaxdiff.models.attention import Cache

Leaves = dict[str, Array]
_POST = "blocks.*.resid_post"


class Base(NamedTuple):
    """What all cells share: model, texts, and edits that every cell has."""

    lm: LM
    tokens: Array
    fixed: tuple[Edit, ...]
    sequences: Array | None
    positions: Array | None


class Clean(NamedTuple):
    """The run without the swept edit.

    Attributes:
        stream: What enters each block, and what leaves the last one.
        cache: Keys and values of all layers and tokens; None where all cells run all tokens.
    """

    stream: Float[Array, "N1 B T D"]
    cache: Cache | None


def clean_run(base: Base, *, cached: bool) -> Clean:
    """Runs the model once without the swept edit."""
    lm, tokens, spec = base.lm, base.tokens, base.lm.spec
    world = world_of(lm, tokens, (), base.fixed, base.sequences, base.positions)
    first = embed(Visitor((world,), ()), 0, tokens)
    world = replace(world, taps=(Tap(_POST, name=_POST),))
    if cached:
        b, t = tokens.shape
        shape = (spec.n_layers, b, spec.n_kv_heads, t, spec.head_dim)
        empty = Cache(*(jnp.zeros(shape, lm.params["embedding"].dtype) for _ in range(2)))
        world = replace(world, context=world.context._replace(start=jnp.int32(0)), cache=empty)
    _, kept, caches = forward((world,), (tokens,), logits=False, length=tokens.shape[1])
    stream = jnp.concatenate([first[None], kept.worlds[0][_POST]])
    return Clean(stream, caches[0] if cached else None)


def from_layer(
    base: Base,
    clean: Clean,
    edit: Edit,
    number: Array,
    starts: Sequence[int],
    metric: Callable[[Array], Any],
    owns: Sequence[tuple[Leaves, int]],
) -> list[Any]:
    """Measures cells whose edit is in block `number`.

    Args:
        base: What they share.
        clean: The run without the edit.
        edit: The edit, at a `*` site.
        number: The block.
        starts: First token that each group of cells runs after that block.
        metric: Of the logits of each row's last token.
        owns: Leaves of the cells of each group, `[C, ...]`, and C.

    Returns:
        What the metric returns for each group, `[C, ...]`.
    """
    length, n = base.tokens.shape[1], base.lm.spec.n_layers
    plain = [_world(base, count) for _, count in owns]
    edited = [
        replace(world, edits=(*world.edits, cells_of(edit, own, count)))
        for world, (own, count) in zip(plain, owns, strict=True)
    ]
    after = layer_and_part(edit.site)[1] == "resid_post"
    stream = jax.lax.dynamic_index_in_dim(clean.stream, number + int(after), 0, keepdims=False)
    xs = tuple(_tiled(stream, count) for _, count in owns)
    if after:
        # The block itself does not change: only what leaves it.
        bare = [replace(world, edits=world.edits[-1:]) for world in edited]
        xs = tuple(
            Visitor((world,), ()).visit(0, "*", "resid_post", x, number)
            for world, x in zip(bare, xs, strict=True)
        )
    else:
        xs = between_layers(edited, xs, number, number + 1, length=length)
    worlds = [
        _from_token(base, world, start, clean) if start else world
        for world, start in zip(plain, starts, strict=True)
    ]
    xs = tuple(x[:, start:] for x, start in zip(xs, starts, strict=True))
    xs = between_layers(worlds, xs, number + 1, n, length=length)
    return [_measured(*each, metric) for each in zip(worlds, xs, owns, strict=True)]


def whole(
    base: Base,
    edit: Edit,
    metric: Callable[[Array], Any],
    owns: Sequence[tuple[Leaves, int]],
) -> list[Any]:
    """Measures cells whose edit is in no single block: they run from their tokens on."""
    ((own, count),) = owns
    world = _world(base, count)
    world = replace(world, edits=(*world.edits, cells_of(edit, own, count)))
    x = embed(Visitor((world,), ()), 0, _tiled(base.tokens, count))
    n, length = base.lm.spec.n_layers, base.tokens.shape[1]
    (x,) = between_layers((world,), (x,), 0, n, length=length)
    return [_measured(world, x, (own, count), metric)]


def chunked(
    run: Callable[[Sequence[tuple[Leaves, int]]], list[Any]],
    grids: Sequence[tuple[Leaves, int]],
    chunk: int,
) -> list[Any]:
    """Runs groups of cells side by side, at most about `chunk` of all their cells at once."""
    counts = [count for _, count in grids]
    pieces = math.ceil(sum(counts) / chunk)
    sizes = [math.ceil(count / pieces) for count in counts]
    if not any(leaves for leaves, _ in grids):
        # Nothing but the layer is swept.
        return run([({}, 1)])

    def piece(leaf: Array, count: int, size: int) -> Array:
        # What is left over is filled up with the last cell.
        places = np.minimum(np.arange(pieces * size), count - 1)
        return leaf[places].reshape(pieces, size, *leaf.shape[1:])

    inputs = [
        {name: piece(leaf, count, size) for name, leaf in leaves.items()}
        for (leaves, count), size in zip(grids, sizes, strict=True)
    ]
    out = jax.lax.map(lambda owns: run(list(zip(owns, sizes, strict=True))), inputs)
    return [
        jax.tree.map(lambda x, count=count: x.reshape(-1, *x.shape[2:])[:count], each)
        for each, count in zip(out, counts, strict=True)
    ]


def _world(base: Base, cells: int) -> World:
    """Returns the model on the rows of all cells, with the edits that every cell has."""
    # These are mapped over cells too: their rows are those of one cell.
    fixed = tuple(cells_of(each, {}, cells) for each in base.fixed)
    tiled = (_tiled(x, cells) for x in (base.tokens, base.sequences, base.positions))
    tokens, sequences, positions = tiled
    return world_of(base.lm, tokens, (), fixed, sequences, positions)


def _from_token(base: Base, world: World, start: int, clean: Clean) -> World:
    """Returns a world that runs the tokens from `start` on and reads those before in the cache."""
    length = base.tokens.shape[1]
    positions = jnp.arange(start, length)[None, :]
    lengths = jnp.full(1, length, jnp.int32)
    read = context(base.lm.spec, positions, None, lengths=lengths, start=jnp.int32(start))
    return replace(world, context=read, at=place(positions, None), cache=clean.cache)


def _measured(
    world: World, x: Array, own: tuple[Leaves, int], metric: Callable[[Array], Any]
) -> Any:
    logits = unembed(Visitor((world,), ()), 0, x, "last")
    assert logits is not None
    return jax.vmap(metric)(logits.reshape(own[1], -1, logits.shape[-1]))


def _tiled(x: Any, cells: int) -> Any:
    return None if x is None else jnp.tile(x, (cells, *(1,) * (x.ndim - 1)))
