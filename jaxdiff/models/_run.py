"""The forward pass: one pure function for all models."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._check import checked
from jaxdiff.models._context import context, in_document, last_column, place
from jaxdiff.models._forward import Between, Kept, Visitor, World, blocks
from jaxdiff.models._lm import LM, module
from jaxdiff.models._tap import Edit, Tap
from jaxdiff.models._traces import traced
from jaxdiff.types import HostOrDevice

Logits = bool | Literal["last"]


def run(
    lm: LM,
    tokens: Int[HostOrDevice, "B T"],
    taps: Sequence[str | Tap] = (),
    edits: Sequence[Edit] = (),
    *,
    sequences: Int[HostOrDevice, "B T"] | None = None,
    positions: Int[HostOrDevice, "B T"] | None = None,
    logits: Logits = True,
    attention: Literal["plain", "fused"] = "plain",
    remat: bool = False,
) -> tuple[Array | None, dict[str, Any]]:
    """Runs a model on tokens; returns its logits and what was tapped.

    The structure of taps and edits (which, where) decides the program, which is compiled once;
    their leaves (vectors, positions, strengths) are arguments of it. Blocks after the last thing
    asked for are not computed, nor what edits replace. With no taps and no edits, here or carried
    by the model, the program is the plain model's. `run` is pure: differentiate it, or use it
    inside programs of your own. Products follow `jax.default_matmul_precision`: on GPU and TPU,
    float32 weights alone do not make them exact.

    Args:
        lm: The model; differentiable with respect to `lm.params`.
        tokens: Token ids.
        taps: Sites to read, by any name that `canonical_site` knows, or `Tap`s of them.
        edits: Edits, applied in this order at each site, after those that the model carries; a tap
            sees what they made.
        sequences: Document of each token, -1 for padding: tokens see earlier tokens of the same
            document only. One document per row when None.
        positions: Position in the document [tokens]. When None, the position in the row, which is
            as good where positions are rotary; where they are learned, that in the document.
        logits: Whether to return logits; "last": only those of each row's last token.
        attention: "fused" uses the device's fused kernel, except in blocks whose scores or pattern
            are tapped or edited, which is logged.
        remat: Compute the inside of the blocks again in the backward pass, for its memory.

    Returns:
        Logits `[B, T, V]`, or `[B, V]` of the last tokens, or None; and by the names that were
        asked for: the site's value in the dtype of the weights, with a leading axis of layers for
        `blocks.*` sites, or what the tap makes of it.

    Raises:
        JaxdiffError: If a site does not exist, an edit or a position does not fit, or the fused
            kernel cannot do what the model needs.
    """
    if logits not in (True, False, "last"):
        raise JaxdiffError(f"logits={logits!r}", fix="it is True, False or 'last'")
    asked = checked(lm, taps, edits, tokens, attention, own_positions=positions is not None)
    out, found = _run(
        asked.lm,
        tokens,
        asked.taps,
        asked.edits,
        sequences,
        positions,
        skipped=asked.skipped,
        logits=logits,
        fused=attention == "fused",
        remat=remat,
    )
    return out, {tap.name: found[tap.name] for tap in asked.taps}


@functools.partial(jax.jit, static_argnames=("skipped", "logits", "fused", "remat"), inline=True)
@traced("run")
def _run(lm, tokens, taps, edits, sequences, positions, *, skipped, logits, fused, remat):
    world = world_of(lm, tokens, taps, edits, sequences, positions, skipped)
    out, kept = forward(
        (world,), (tokens,), logits=logits, fused=fused, remat=remat, length=tokens.shape[1]
    )[:2]
    return out[0], kept.worlds[0]


def world_of(
    lm: LM,
    tokens: HostOrDevice,
    taps: tuple[Tap, ...],
    edits: tuple[Edit, ...],
    sequences: HostOrDevice | None = None,
    positions: HostOrDevice | None = None,
    skipped: frozenset[int] = frozenset(),
) -> World:
    """Returns a model on a batch of whole texts; positions are those of the rows when None.

    Raises:
        JaxdiffError: If sequences or positions have another shape than the tokens.
    """
    check_like_tokens(tokens, sequences, positions)
    if positions is None:
        positions = jnp.arange(tokens.shape[1])[None, :]
        if sequences is not None and lm.spec.rope is None:
            positions = in_document(sequences)
    return World(
        lm=lm,
        context=context(lm.spec, positions, sequences),
        at=place(positions, sequences),
        edits=edits,
        taps=taps,
        skipped=skipped,
    )


def check_like_tokens(tokens: HostOrDevice, sequences: Any, positions: Any) -> None:
    """Refuses sequences that are not `[B, T]`, and positions that are not `[B, T]` or `[1, T]`."""
    b, t = tokens.shape
    for name, each in (("sequences", sequences), ("positions", positions)):
        shape = getattr(each, "shape", None)
        if each is None or shape == (b, t) or name == "positions" and shape == (1, t):
            continue
        given = type(each).__name__ if shape is None else list(shape)
        raise JaxdiffError(
            f"{name} are an array with a number for each of tokens [{b}, {t}], not {given}",
            where=name,
        )


def forward(
    worlds: tuple[World, ...],
    tokens: tuple[HostOrDevice, ...],
    between: tuple[Between, ...] = (),
    *,
    logits: Logits,
    length: int,
    fused: bool = False,
    remat: bool = False,
) -> tuple[list[Array | None], Kept, tuple[Any, ...]]:
    """Runs worlds from their tokens to their logits.

    Returns:
        Each world's logits, what was tapped, and each world's cache.
    """
    visitor = Visitor(worlds, between)
    xs = tuple(embed(visitor, w, ids) for w, ids in enumerate(tokens))
    head = bool(logits) or any(_ends(world, between) for world in worlds)
    streams, caches, kept = blocks(
        worlds, xs, between, whole=head, length=length, fused=fused, remat=remat
    )
    out: list[Array | None] = [None] * len(worlds)
    if head:
        out = [unembed(visitor, w, x, logits) for w, x in enumerate(streams)]
    for own, inside in zip(visitor.kept.worlds, kept.worlds, strict=True):
        own.update(inside)
    visitor.kept.between.update(kept.between)
    return out, visitor.kept, caches


def embed(visitor: Visitor, w: int, tokens: Int[HostOrDevice, "B T"]) -> Float[Array, "B T D"]:
    """Returns the stream of world `w` before its first block."""
    model = module(visitor.worlds[w].lm)
    x = visitor.visit(w, "", "embed", model.embed(tokens))
    if model.position_embedding is None:
        return x
    learned = model.embed_positions(visitor.worlds[w].at.positions)
    return x + visitor.visit(w, "", "pos_embed", jnp.broadcast_to(learned, x.shape))


def unembed(
    visitor: Visitor, w: int, x: Float[Array, "B T D"], logits: Logits
) -> Float[Array, "B *T V"] | None:
    """Returns the logits of world `w` from its stream after the last block."""
    world, model = visitor.worlds[w], module(visitor.worlds[w].lm)
    # What one world reads of another must be as long in both.
    ends = set().union(*(_ends(each, visitor.between) for each in visitor.worlds))
    early = logits == "last" and not ends
    x = last_tokens(x, world.context.sequences) if early else x

    def seen(scale: Array) -> Array:
        return visitor.visit(w, "", "final_norm.scale", scale)

    x = visitor.visit(w, "", "final_norm", model.final_norm(x, seen))
    if not logits and "logits" not in ends:
        return None
    y = visitor.visit(w, "", "logits", model.unembed(x))
    if logits == "last" and not early:
        y = last_tokens(y, world.context.sequences)
    return y if logits else None


def _ends(world: World, between: Sequence[Between]) -> set[str]:
    """Returns which sites after the blocks are tapped or edited."""
    asked = (*world.edits, *world.taps, *between)
    ends = {"final_norm.scale", "final_norm", "logits"}
    return ends.intersection(each.site for each in asked)


def last_tokens(
    x: Float[Array, "B T D"], sequences: Int[HostOrDevice, "B T"] | None
) -> Float[Array, "B D"]:
    """Returns what belongs to the rows' last tokens that are no padding."""
    if sequences is None:
        return x[:, -1]
    return jnp.take_along_axis(x, last_column(sequences)[:, None, None], axis=1)[:, 0]
