"""Patchscopes: a hidden state is put into another prompt, which makes the model tell what it holds.

Ghandeharioun, Caciularu, Pearce, Dixon, Geva: arXiv:2401.06102.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.causal import sweep
from jaxdiff.edits import Edit, PerLayer, Set, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, At, Tap, canonical_site, generate, run
from jaxdiff.models._traces import traced
from jaxdiff.readouts._logit_lens import check_width
from jaxdiff.readouts._positions import Positions, checked_positions
from jaxdiff.readouts._reading import Reader, Reading, check_k, checked_tokens
from jaxdiff.types import HostOrDevice


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Affine:
    """`weight @ x + bias`: from the hidden states of one model to those of another.

    Attributes:
        weight: `[E, D]`.
        bias: `[E]`.
    """

    weight: Any
    bias: Any = 0.0

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B E"]:
        """Maps the last axis, in float32."""
        weight = jnp.asarray(self.weight).astype(jnp.float32)
        bias = jnp.broadcast_to(jnp.asarray(self.bias).astype(jnp.float32), weight.shape[:1])
        y = jnp.einsum("...d,ed->...e", x.astype(jnp.float32), weight)
        return y + bias[(None,) * (y.ndim - 1)]


def patchscope(
    lm: LM,
    source_tokens: Int[HostOrDevice, "B S"],
    target_tokens: Int[HostOrDevice, "C T"],
    *,
    source_layers: Any = None,
    target_layers: Any = None,
    source_positions: Any = -1,
    target_positions: Any = -1,
    source_site: str = "blocks.*.resid_post",
    target_site: str = "blocks.*.resid_post",
    target: LM | None = None,
    through: Any = None,
    k: int = 5,
    targets: Any = None,
    logits: bool = False,
    edits: Sequence[Edit] = (),
) -> Reading:
    """Puts hidden states of source texts into target texts, and reads the next token there.

    All layers are one program, in which the blocks before a target layer are run once.

        # What does each layer hold at the end of each text? "cat->cat; 135->135; hello->hello; ?"
        found = patchscope(lm, texts, identity, target_layers=0, targets=names)
        found.tokens[5, 2, 0]     # what layer 5 says of the third text
        found.rank                # [N, B], of each text's own name

    Rows of tokens and positions belong together, and one row stands for all: with one source text,
    `source_positions=np.arange(S)` reads all of its positions.

    Args:
        lm: The model of the source texts.
        source_tokens: Texts whose hidden states are read; rows of one length.
        target_tokens: Texts that they are put into; rows of one length.
        source_layers: Layers they are read from: one, or `[L]`; all when None.
        target_layers: Layers they are put into: one, or `[M]`, all of them with each source layer;
            when None, each goes to the layer that it comes from.
        source_positions: Where they are read, `[]`, or `[B]`; -1 is the last token.
        target_positions: Where they are put, `[]`, or `[B]`.
        source_site: What is read, of all layers.
        target_site: What is replaced, of all layers.
        target: The model of the target texts; `lm` when None.
        through: Applied to the hidden states on the way, `[..., D]` to `[..., E]`: an `Affine`, or
            another pytree that can be called.
        k: How many of the likeliest tokens are kept.
        targets: Tokens to follow: `[]`, `[B]`, or `[B, K]` of several.
        logits: Whether the logits are kept too.
        edits: Edits of the target model, as in `models.run`, applied before.

    Returns:
        What the last token of each target text is followed by, `[B, ...]`; axes of source layers
        and of target layers come before, each where there may be several.

    Raises:
        JaxdiffError: If a site, layer, position or token does not exist, rows do not belong
            together, or widths differ and nothing maps one to the other.
    """
    target = lm if target is None else target
    check_k(target.spec, k)
    targets = checked_tokens(target.spec, targets)
    scope = _scope(
        (lm.spec, source_tokens, source_layers, source_positions, source_site),
        (target.spec, target_tokens, target_layers, target_positions, target_site),
    )
    hidden = _hidden_states(lm, target, scope, through)
    put, over = Set(hidden[0]), {"op.to": hidden, "layers": scope.target.layers}
    if target_layers is None:
        table = jnp.zeros((target.spec.n_layers, *hidden.shape[1:]), hidden.dtype)
        put = PerLayer(Set(table.at[scope.source.layers].set(hidden)))
        over = {"layers": scope.source.layers}
    positions = scope.target.positions[:, None]
    found = sweep(
        target,
        scope.target.tokens,
        edit(target_site, put, positions=positions),
        Reader(targets, None, k=k, logits=logits),
        over,
        edits=edits,
    )
    return jax.tree.map(lambda x: x.reshape(*scope.cells, *x.shape[len(over) :]), found)


def patchscope_generate(
    lm: LM,
    source_tokens: Int[HostOrDevice, "B S"],
    target_tokens: Int[HostOrDevice, "C T"],
    steps: int,
    *,
    source_layers: Any = None,
    target_layers: Any = None,
    source_positions: Any = -1,
    target_positions: Any = -1,
    source_site: str = "blocks.*.resid_post",
    target_site: str = "blocks.*.resid_post",
    target: LM | None = None,
    through: Any = None,
    **sampling: Any,
) -> Int[Array, "..."]:
    """Puts hidden states of source texts into target texts, and lets the model go on from there.

    The hidden states are put into the prompt; what is generated sees them through it.

        told = patchscope_generate(lm, texts, describe_prompt, 20, target_layers=2)
        [tokenizer.decode(ids) for ids in told[:, 0]]     # what each layer makes it tell

    Args:
        lm: As in `patchscope`, and so are the arguments that are not named here.
        source_tokens: As in `patchscope`.
        target_tokens: As in `patchscope`.
        steps: Tokens to generate.
        source_layers: As in `patchscope`.
        target_layers: As in `patchscope`.
        source_positions: As in `patchscope`.
        target_positions: As in `patchscope`.
        source_site: As in `patchscope`.
        target_site: As in `patchscope`.
        target: As in `patchscope`.
        through: As in `patchscope`.
        **sampling: `temperature`, `key`, `top_k`, ... of `models.generate`.

    Returns:
        The tokens that were generated, `[..., B, steps]`, with axes of layers as in `patchscope`.

    Raises:
        JaxdiffError: As `patchscope` and `models.generate` do.
    """
    target = lm if target is None else target
    scope = _scope(
        (lm.spec, source_tokens, source_layers, source_positions, source_site),
        (target.spec, target_tokens, target_layers, target_positions, target_site),
    )
    hidden = _hidden_states(lm, target, scope, through)[:, :, 0]
    rows, sources = scope.target.tokens.shape[0], len(scope.source.layers)
    into = scope.source.layers[:, None]
    if target_layers is not None:
        into = np.broadcast_to(scope.target.layers, (sources, len(scope.target.layers)))
    cells = into.size
    put = _Put(
        jnp.repeat(hidden, into.shape[1], axis=0).reshape(cells * rows, -1),
        np.repeat(into.ravel(), rows),
    )
    positions = np.tile(scope.target.positions[:, None], (cells, 1))
    out = generate(
        target,
        jnp.tile(jnp.asarray(scope.target.tokens), (cells, 1)),
        steps,
        edits=(edit(target_site, put, positions=positions, steps=0),),
        **sampling,
    )
    return out.generated.reshape(*scope.cells, rows, steps)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Put:
    """Op: puts a vector into each row, at the row's own layer.

    Attributes:
        to: `[R, D]`.
        layers: `[R]`.
    """

    to: Any
    layers: Any

    def __call__(self, value: Array, at: At) -> Array:
        here = (jnp.asarray(self.layers) == at.layer)[:, None, None]
        return jnp.where(here, jnp.asarray(self.to)[:, None].astype(value.dtype), value)


class _Side(NamedTuple):
    """Source or target: tokens `[B or 1, T]`, layers `[L]`, a position for each of B rows."""

    tokens: HostOrDevice
    layers: np.ndarray
    positions: np.ndarray
    site: str


class _Scope(NamedTuple):
    """Both sides, and the axes of layers that the result has."""

    source: _Side
    target: _Side
    cells: tuple[int, ...]


def _scope(source: tuple[Any, ...], target: tuple[Any, ...]) -> _Scope:
    sides, counts = [], []
    for name, (spec, tokens, layers, positions, site) in {
        "source": source,
        "target": target,
    }.items():
        check_width(spec, site)
        if not canonical_site(spec, site).startswith("blocks.*."):
            raise JaxdiffError("a patchscope reads all layers", where=site, fix="write blocks.*.…")
        numbers = np.arange(source[0].n_layers) if layers is None else np.asarray(layers)
        beyond = numbers[(numbers < 0) | (numbers >= spec.n_layers)]
        if beyond.size or numbers.ndim > 1 or not numbers.size:
            raise JaxdiffError(
                f"{name}_layers={layers!r} in a model of {spec.n_layers} layers",
                where="patchscope",
                fix="give one layer, or [L] of them",
            )
        where = f"patchscope: {name}_positions"
        places = np.asarray(checked_positions(positions, tokens.shape[1], where=where))
        sides.append(_Side(tokens, numbers.reshape(-1), places, site))
        counts.append(numbers.shape)
    one, other = sides
    if target[2] is None and one.layers.max() >= target[0].n_layers:
        raise JaxdiffError(
            f"the target has no layer {one.layers.max()}",
            where="patchscope",
            fix="give target_layers",
        )
    rows = {len(s.tokens) for s in sides} | {s.positions.size for s in sides}
    b = max(rows)
    if rows - {1, b} or max(s.positions.ndim for s in sides) > 1:
        raise JaxdiffError(
            f"rows of tokens and positions do not belong together: {sorted(rows)}",
            where="patchscope",
            fix="give as many of each, or one for all",
        )
    one, other = (s._replace(positions=np.broadcast_to(s.positions.ravel(), (b,))) for s in sides)
    tokens = jnp.broadcast_to(jnp.asarray(other.tokens), (b, other.tokens.shape[1]))
    cells = counts[0] if target[2] is None else counts[0] + counts[1]
    return _Scope(one, other._replace(tokens=tokens), cells)


def _hidden_states(lm: LM, target: LM, scope: _Scope, through: Any) -> Float[Array, "L B 1 E"]:
    """Returns what the source texts have at their positions, of all source layers."""
    source = scope.source
    hidden = _hidden(lm, source.tokens, source.layers, source.positions, through, site=source.site)
    if hidden.shape[-1] != target.spec.d_model:
        raise JaxdiffError(
            f"hidden states of width {hidden.shape[-1]} do not fit a model of width "
            f"{target.spec.d_model}",
            where="patchscope: through",
            fix="give through=Affine(weight, bias)",
        )
    return hidden


@functools.partial(jax.jit, static_argnames="site")
@traced("patchscope")
def _hidden(lm, tokens, layers, positions, through, *, site):
    # With one text, all positions are read in its one row.
    wanted = positions if len(tokens) == 1 else positions[:, None]
    read = Tap(site, reduce=Positions(wanted))
    hidden = run(lm, tokens, (read,), logits=False)[1][site][layers]
    hidden = jnp.swapaxes(hidden, 1, 2) if len(tokens) == 1 else hidden
    return hidden if through is None else through(hidden)
