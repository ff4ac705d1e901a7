"""Direct logit attribution: what each part of the stream adds to a logit by itself."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.models import LM, Edit
from jaxdiff.models._check import checked
from jaxdiff.models._traces import traced
from jaxdiff.readouts._decompose import check_edits, parts_along
from jaxdiff.readouts._frozen import FrozenNorm
from jaxdiff.readouts._parts import Parts
from jaxdiff.readouts._positions import checked_positions
from jaxdiff.readouts._reading import checked_tokens, on_the_left
from jaxdiff.types import HostOrDevice


def direct_logit_attribution(
    lm: LM,
    tokens: Int[HostOrDevice, "B T"],
    right: Any,
    wrong: Any = None,
    *,
    heads: bool = True,
    positions: Any = None,
    edits: Sequence[Edit] = (),
    sequences: Int[HostOrDevice, "B T"] | None = None,
) -> Parts:
    """Splits a logit, or a difference of two, over the parts of the model.

        logits[right] - logits[wrong] = sum over parts of (W[right] - W[wrong]) @ norm(part)

    where the final norm has the scale of the whole stream, and so do norms after branches. Logits
    are those before a soft cap. A part's number is what it adds directly, not what later parts make
    of it: `causal.attribute` measures that. Parts are measured inside the program; they are never
    kept.

        found = direct_logit_attribution(lm, tokens, right=he, wrong=she, positions=-1)
        found["blocks.*.attn.z.*"].reshape(lm.spec.n_layers, lm.spec.n_heads, B)
        found.total                                     # the difference of the logits
        show(found).save("attribution.html")

    Args:
        lm: The model.
        tokens: Token ids.
        right: Token ids `[]`, `[B]`, or `[B, T]`, where T are the positions that are kept.
        wrong: Token ids that are taken off; none when None.
        heads: Whether attentions are split into heads.
        positions: Positions whose logits are split, as in `logit_lens`.
        edits: Edits, as in `models.run`.
        sequences: Document of each token, as in `models.run`.

    Returns:
        What each part adds, `[P, B, T]` in float32, or `[P, B]` at one position.

    Raises:
        JaxdiffError: If a token or a position does not exist, or an edit leaves out a block or
            comes after the last one.
    """
    right, wrong = checked_tokens(lm.spec, right), checked_tokens(lm.spec, wrong)
    edits, lm = (*lm.edits, *edits), replace(lm, edits=())
    check_edits(lm.spec, edits, "direct_logit_attribution")
    checked(lm, (), edits, tokens)
    where = "direct_logit_attribution: positions"
    positions = checked_positions(positions, tokens.shape[1], where=where)
    return _direct(lm, tokens, right, wrong, edits, positions, sequences, heads=heads)


@functools.partial(jax.jit, static_argnames="heads", inline=True)
@traced("direct_logit_attribution")
def _direct(lm, tokens, right, wrong, edits, positions, sequences, *, heads):
    axes = 1 if positions is not None and jnp.ndim(positions) == 0 else 2
    direction = _rows(lm, right, axes)
    direction = direction if wrong is None else direction - _rows(lm, wrong, axes)
    norm = FrozenNorm(lm.params["final_norm"], lm.spec)
    # The scale of the norm is known at the end only; the parts do not need it to be measured.
    before = norm.back(direction)
    kept = parts_along(lm, tokens, edits, positions, sequences, before, heads=heads)
    names, values = kept.names, kept.values * kept.scale[None, ..., 0]
    if norm.bias is not None:
        bias = jnp.einsum("...d,d->...", direction, norm.bias)
        values = jnp.concatenate([values, jnp.broadcast_to(bias, (1, *values.shape[1:]))])
        names += ("final_norm.bias",)
    return Parts(values, names)


def _rows(lm: LM, token: Any, axes: int) -> Float[Array, "*B D"]:
    """Returns rows of the unembedding for tokens with the first of some axes."""
    weight = lm.params["embedding" if lm.spec.tied else "unembedding"]
    ids = on_the_left(jnp.asarray(token), axes)
    return jnp.take(weight, ids, axis=0, mode="fill").astype(jnp.float32)
