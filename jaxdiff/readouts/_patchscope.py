"""Patchscopes: a hidden state is put into another prompt, which makes the model tell what it holds.

Ghandeharioun, Caciularu, Pearce, Dixon, Geva: arXiv:2401.06102.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxdiff.causal import sweep
from jaxdiff.edits import Edit, PerLayer, Set, edit
from jaxdiff.models import LM, At, generate
from jaxdiff.models._check import check_no_rows
from jaxdiff.readouts._hidden_states import hidden_states, scope_of
from jaxdiff.readouts._reading import Reader, Reading, check_k, checked_tokens
from jaxdiff.types import HostOrDevice


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
    scope = scope_of(
        (lm.spec, source_tokens, source_layers, source_positions, source_site),
        (target.spec, target_tokens, target_layers, target_positions, target_site),
    )
    hidden = hidden_states(lm, target, scope, through)
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
    check_no_rows(target, "patchscope_generate")
    scope = scope_of(
        (lm.spec, source_tokens, source_layers, source_positions, source_site),
        (target.spec, target_tokens, target_layers, target_positions, target_site),
    )
    hidden = hidden_states(lm, target, scope, through)[:, :, 0]
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
