"""The blocks of one or several models in lockstep, with taps and edits on the way.

A world is one model on one batch. Several worlds go through the blocks together, so that an edit of
a later one can use what an earlier one computed at the same site, and what they differ in can be
reduced without keeping either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._context import layers, stacked_layers
from jaxdiff.models._lm import LM, module, stacked
from jaxdiff.models._plan import Asked, Segment, plan
from jaxdiff.models._sites import layer_and_part, sites
from jaxdiff.models._tap import At, Edit, Tap
from jaxdiff.models.attention import Context

Streams = tuple[Array, ...]
Caches = tuple[Any, ...]


@dataclass(frozen=True)
class World:
    """One model on one batch.

    Attributes:
        lm: The model.
        context: What its blocks read besides the stream.
        at: Where its tokens are.
        edits: Edits by canonical site.
        taps: Taps by canonical site, each with its name.
        skipped: Blocks that are not run.
        cache: Keys and values of earlier columns: stacked over layers, or one a layer, as the
            weights are.
    """

    lm: LM
    context: Context
    at: At
    edits: tuple[Edit, ...] = ()
    taps: tuple[Tap, ...] = ()
    skipped: frozenset[int] = frozenset()
    cache: Any = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Between:
    """Reads a site in all worlds at once.

    Attributes:
        site: Where, by any name that `canonical_site` knows.
        reduce: What is made of the worlds' values: `reduce(values, at)`.
        name: Key of the result; the site as it was written when empty.
    """

    site: str = field(metadata={"static": True})
    reduce: Callable[[tuple[Array, ...], At], Any]
    name: str = field(default="", metadata={"static": True})


class Kept(NamedTuple):
    """What was tapped, by name: in each world, and between them."""

    worlds: tuple[dict[str, Any], ...]
    between: dict[str, Any]


class Visitor:
    """Sees every value while a program is traced: edits it, and keeps what is asked of it."""

    def __init__(self, worlds: Sequence[World], between: Sequence[Between]):
        self.worlds, self.between = worlds, between
        self.kept = Kept(tuple({} for _ in worlds), {})
        self._seen: dict[str, dict[int, Array]] = {}

    def visit(
        self, w: int, number: str, part: str, value: Array, layer: Array | int | None = None
    ) -> Array:
        """Returns what world `w` goes on with.

        Args:
            w: Number of the world.
            number: Number of the block, `*` in a loop over blocks, empty outside of them.
            part: Site, inside its block.
            value: What the model computed there.
            layer: Number of the block, for the edits.
        """
        names = (f"blocks.{number}.{part}", f"blocks.*.{part}") if number else (part,)
        world, seen = self.worlds[w], self._seen.setdefault(part, {})
        spec = world.lm.spec
        axes = sites(spec).get(names[0].replace("*", "0"), ())
        # A world without the site, or without the block, has None here.
        others = tuple(seen.get(i) for i in range(w))
        at = replace(world.at, layer=layer, others=others, axes=axes, layers=spec.n_layers)
        for edit in world.edits:
            if edit.site in names:
                value = _edited(edit, value, at)
        for tap in world.taps:
            if tap.site in names:
                self.kept.worlds[w][tap.name] = tap(value, at)
        seen[w] = value
        if w == len(self.worlds) - 1:
            for asked in self.between:
                if asked.site in names:
                    self.kept.between[asked.name] = asked.reduce(
                        tuple(seen[i] for i in range(w + 1)), at
                    )
        return value


def blocks(
    worlds: Sequence[World],
    xs: Streams,
    between: Sequence[Between] = (),
    *,
    whole: bool,
    length: int,
    fused: bool = False,
    remat: bool = False,
) -> tuple[Streams, Caches, Kept]:
    """Runs the blocks that are needed: alike ones in a loop that is compiled once.

    Args:
        worlds: The worlds; their models have as many blocks and the same layout of weights.
        xs: Stream of each world before the first block.
        between: What is asked of all worlds at once.
        whole: Whether the stream after the last block is wanted.
        length: Longest text that the tokens can belong to [tokens].
        fused: Use the fused attention where nothing of its inside is asked for.
        remat: Compute the inside of the blocks again in the backward pass.

    Returns:
        The streams after the last block that was run, the worlds' caches, and what was tapped.
    """
    loops = stacked(worlds[0].lm)
    asked = [Asked(w.edits, w.taps, w.skipped) for w in worlds]
    n = worlds[0].lm.spec.n_layers
    segments = plan(asked, [b.site for b in between], n, whole=whole, loops=loops)
    weights = _weights(worlds, length)
    kept: list[Kept] = []
    caches = tuple(world.cache for world in worlds)
    for segment in segments:
        attention = fused and not segment.plain_attention
        step = _step(worlds, between, segment, fused=attention, remat=remat)
        run = _alone if segment.alone else _loop
        xs, caches, new = run(worlds, step, segment, weights, xs, caches)
        if segment.ends:
            for found, x in zip(new.worlds, xs, strict=True):
                found[_END] = x
        kept.append(new)
    return xs, caches, _gather(worlds, between, segments, kept)


def between_layers(
    worlds: Sequence[World], xs: Streams, low: Array | int, high: Array | int, *, length: int
) -> Streams:
    """Runs blocks low to high - 1; as arrays, other ones compile nothing anew.

    Reads no taps. Edits of `blocks.*` sites apply. A cache, `[N, B, ...]`, is read by any multiple
    of its B rows and stays as it is.
    """
    n = worlds[0].lm.spec.n_layers
    segment = Segment(0, n, False, False, (frozenset(),) * len(xs), True)
    step = _step(worlds, (), segment, fused=False, remat=False)
    weights = _weights(worlds, length)

    def cache(world: World, x: Array, i: Array) -> Any:
        def tiled(leaf: Array) -> Array:
            own = _index(leaf, i)
            return jnp.tile(own, (x.shape[0] // own.shape[0], *(1,) * (own.ndim - 1)))

        return jax.tree.map(tiled, world.cache)

    def block(xs: Streams, i: Array) -> Streams:
        caches = tuple(cache(world, x, i) for world, x in zip(worlds, xs, strict=True))
        return step(xs, _layer(weights, i), caches, i)[0]

    if isinstance(low, int) and isinstance(high, int):
        return jax.lax.scan(lambda xs, i: (block(xs, i), None), xs, jnp.arange(low, high))[0]

    def body(xs: Streams, i: Array) -> tuple[Streams, None]:
        return jax.lax.cond((low <= i) & (i < high), block, lambda xs, _: xs, xs, i), None

    # Blocks outside of the bounds are passed by: a loop of traced length would have no gradient.
    return jax.lax.scan(body, xs, jnp.arange(n))[0]


def _weights(worlds: Sequence[World], length: int) -> tuple[Any, ...]:
    """Returns the weights and the windows of each world, over layers as the weights are."""
    return tuple(
        (w.lm.params["blocks"], stacked_layers(w.lm.spec, length))
        if stacked(w.lm)
        else tuple(zip(w.lm.params["blocks"], layers(w.lm.spec, length), strict=True))
        for w in worlds
    )


def _step(
    worlds: Sequence[World],
    between: Sequence[Between],
    segment: Segment,
    *,
    fused: bool,
    remat: bool,
) -> Callable[..., tuple[Streams, Caches, Kept]]:
    """Makes the function that runs one block of every world."""
    number = str(segment.low) if segment.alone else "*"
    if not segment.alone:
        # All blocks of the loop are read alike; `_gather` gives each its name again.
        worlds = [
            replace(w, taps=(*w.taps, *(Tap(f"blocks.*.{p}", name=_each(p)) for p in parts)))
            for w, parts in zip(worlds, segment.parts, strict=True)
        ]
    structures = [nnx.split(module(w.lm).blocks)[0] for w in worlds]

    def step(xs: Streams, weights: Any, caches: Caches, i: Any):
        visitor, out, new = Visitor(worlds, between), [], []
        for w, (world, x) in enumerate(zip(worlds, xs, strict=True)):

            def tap(part: str, value: Array, w: int = w) -> Array:
                return visitor.visit(w, number, part, value, i)

            cache = caches[w]
            if not (segment.alone and segment.low in world.skipped):
                params, layer = weights[w]
                block = nnx.merge(structures[w], params)
                x, cache = block(x, world.context, layer, tap, cache, fused=fused)
            out.append(x)
            new.append(cache)
        return tuple(out), tuple(new), visitor.kept

    return jax.checkpoint(step, static_argnums=(3,) if segment.alone else ()) if remat else step


def _alone(
    worlds: Sequence[World],
    step: Callable,
    segment: Segment,
    weights: Any,
    xs: Streams,
    caches: Caches,
) -> tuple[Streams, Caches, Kept]:
    i = segment.low
    if stacked(worlds[0].lm):
        xs, caches, kept = step(xs, _layer(weights, i), _at_layer(caches, i), i)
        return xs, _at_layer(caches, None), kept
    own = tuple(None if cache is None else cache[i] for cache in caches)
    xs, own, kept = step(xs, tuple(each[i] for each in weights), own, i)
    return xs, tuple(map(partial(_replaced, i), caches, own)), kept


def _loop(
    worlds: Sequence[World],
    step: Callable,
    segment: Segment,
    weights: Any,
    xs: Streams,
    caches: Caches,
) -> tuple[Streams, Caches, Kept]:
    low, high = segment.low, segment.high
    whole = high - low == worlds[0].lm.spec.n_layers
    # The number of the block is part of the program only where something may ask for it.
    numbered = not whole or any(layer_and_part(e.site)[0] == "*" for w in worlds for e in w.edits)
    numbered |= any(layer_and_part(t.site)[0] == "*" for w in worlds for t in w.taps if not t.plain)
    numbered |= any(cache is not None for cache in caches) or len(worlds) > 1

    def body(carry, inputs):
        (xs, caches), (own, i) = carry, inputs
        # A part of the stack is indexed inside the loop: slicing it first would copy its weights.
        own = own if whole else _layer(weights, i)
        # Caches are carried, and written in place, for the same reason.
        xs, caches, kept = step(xs, own, _at_layer(caches, i), i)
        return (xs, _at_layer(caches, None)), kept

    numbers = jnp.arange(low, high) if numbered else None
    inputs = (weights if whole else None, numbers)
    (xs, caches), kept = jax.lax.scan(body, (xs, caches), inputs)
    return xs, caches, kept


def _at_layer(caches: Caches, i: int | Array | None) -> Caches:
    return tuple(None if cache is None else cache._replace(layer=i) for cache in caches)


def _replaced(i: int, cache: Any, own: Any) -> Any:
    return None if cache is None else (*cache[:i], own, *cache[i + 1 :])


def _layer(tree: Any, i: int | Array) -> Any:
    return jax.tree.map(lambda leaf: leaf if jnp.ndim(leaf) == 0 else _index(leaf, i), tree)


def _index(leaf: Array, i: int | Array) -> Array:
    return jax.lax.dynamic_index_in_dim(leaf, i, 0, keepdims=False)


def _each(part: str) -> str:
    """Name of what a loop reads in each of its blocks; no name that a person would choose."""
    return f"\0{part}"


_END = "\0end"


def _gather(
    worlds: Sequence[World],
    between: Sequence[Between],
    segments: list[Segment],
    kept: list[Kept],
) -> Kept:
    """Joins what the segments kept: over layers for `*` sites, each by its name for others."""
    gathered = tuple(
        _gathered(w.taps, segments, [k.worlds[i] for k in kept]) for i, w in enumerate(worlds)
    )
    return Kept(gathered, _gathered(between, segments, [k.between for k in kept]))


def _gathered(
    asked: Sequence[Tap | Between], segments: list[Segment], kept: list[dict[str, Any]]
) -> dict[str, Any]:
    out = {}
    for tap in asked:
        layer, part = layer_and_part(tap.site)
        pieces = [
            jax.tree.map(lambda leaf: leaf[None], found[tap.name])
            if segment.alone
            else found[tap.name]
            for segment, found in zip(segments, kept, strict=True)
            if layer == "*" and tap.name in found
        ]
        if pieces:
            out[tap.name] = (
                pieces[0]
                if len(pieces) == 1
                else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *pieces)
            )
        for segment, found in zip(segments, kept, strict=True):
            if layer not in ("", "*") and segment.low <= int(layer) < segment.high:
                if segment.alone:
                    out[tap.name] = found[tap.name]
                elif segment.ends:
                    out[tap.name] = found[_END]
                else:
                    out[tap.name] = found[_each(part)][int(layer) - segment.low]
    return out


def _edited(edit: Edit, value: Array, at: At) -> Array:
    """Applies an edit; one that does not fit is refused with both shapes, while tracing."""
    cause = None
    try:
        new = edit(value, at)
        if not isinstance(new, jax.Array):
            problem = f"it returned {type(new).__name__}"
        elif (new.shape, new.dtype) == (value.shape, value.dtype):
            return new
        else:
            problem = f"it returned {_type(new)}"
    except (TypeError, ValueError, IndexError) as error:
        cause, problem = error, str(error).strip().partition("\n")[0]
    leaves = ", ".join(str(list(jnp.shape(leaf))) for leaf in jax.tree.leaves(edit))
    raise JaxdiffError(
        f"this edit does not fit the value of its site, {_type(value)} "
        f"({', '.join(map(str, at.axes))}): {problem}",
        where=edit.site,
        fix=f"its leaves have the shapes {leaves}" if leaves else "",
    ) from cause


def _type(value: Array) -> str:
    return f"{value.dtype}{list(value.shape)}"
