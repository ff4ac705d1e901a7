"""The final residual stream as a sum of what the parts of the model add to it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, At, Edit, ModelConfig, Tap, run
from jaxdiff.models._check import checked
from jaxdiff.models._sites import whole_block
from jaxdiff.models._traces import traced
from jaxdiff.readouts._frozen import FrozenNorm, HeadParts
from jaxdiff.readouts._head import check_head
from jaxdiff.readouts._parts import Parts, has_bias, names_of
from jaxdiff.readouts._positions import at_positions, checked_positions
from jaxdiff.types import HostOrDevice


def decompose(
    lm: LM,
    tokens: Int[HostOrDevice, "B T"],
    *,
    heads: bool = False,
    normed: bool = False,
    positions: Any = None,
    edits: Sequence[Edit] = (),
    sequences: Int[HostOrDevice, "B T"] | None = None,
) -> Parts:
    """Takes the stream after the last block apart: embeddings, attentions, MLPs.

        stream = embed + pos_embed + sum over layers of (attn_out + mlp_out)

    In models with norms after the branches, the parts are what comes out of them; a head's part is
    what such a norm makes of it with the scale of the whole sum.

        parts = decompose(lm, tokens, heads=True, positions=-1)
        parts["blocks.*.attn.z.*"].reshape(lm.spec.n_layers, lm.spec.n_heads, B, D)
        parts.accumulated().values                # the stream after each part

    Args:
        lm: The model.
        tokens: Token ids.
        heads: Whether attentions are split into heads.
        normed: Whether parts are given as the final norm passes them on, with the scale of the
            whole stream; its bias is then a part. Their products with the unembedding sum to the
            logits before the soft cap.
        positions: Positions that are kept, as in `logit_lens`. Of all of them, heads take
            `N * H * B * T * D` numbers.
        edits: Edits, as in `models.run`.
        sequences: Document of each token, as in `models.run`.

    Returns:
        The parts, `[P, B, T, D]` in float32. They sum to the stream, to the rounding of the dtype
        of the model.

    Raises:
        JaxdiffError: If a position does not exist, or an edit leaves out a block or comes after the
            last one.
    """
    edits, lm = (*lm.edits, *edits), replace(lm, edits=())
    check_edits(lm.spec, edits, "decompose")
    checked(lm, (), edits, tokens)
    positions = checked_positions(positions, tokens.shape[1], where="decompose: positions")
    return _decompose(lm, tokens, edits, positions, sequences, heads=heads, normed=normed)


@functools.partial(jax.jit, static_argnames=("heads", "normed"), inline=True)
@traced("decompose")
def _decompose(lm, tokens, edits, positions, sequences, *, heads, normed):
    kept = parts_along(lm, tokens, edits, positions, sequences, None, heads=heads)
    names, values = list(kept.names), [kept.values]
    if normed:
        norm = FrozenNorm(lm.params["final_norm"], lm.spec)
        values = [norm.apply(kept.values) * kept.scale[None]]
        if norm.bias is not None:
            names.append("final_norm.bias")
            values.append(jnp.broadcast_to(norm.bias, (1, *kept.values.shape[1:])))
    return Parts(jnp.concatenate(values), tuple(names))


@dataclass(frozen=True)
class Measured:
    """Parts `[P, B, T, ...]`, their names, and the scale of the final norm `[B, T, 1]`."""

    values: Array
    names: tuple[str, ...]
    scale: Array


def parts_along(
    lm: LM,
    tokens: HostOrDevice,
    edits: tuple[Edit, ...],
    positions: Any,
    sequences: HostOrDevice | None,
    direction: Float[Array, "*B D"] | None,
    *,
    heads: bool,
) -> Measured:
    """Returns the parts of the stream, or how far each goes along a direction."""
    spec, one = lm.spec, _Part(positions, direction)
    end = f"blocks.{spec.n_layers - 1}.resid_post"
    first = ("embed",) if spec.rope else ("embed", "pos_embed")
    split = HeadParts(lm.params["blocks"], positions, direction, spec)
    attn = (
        Tap("blocks.*.attn.z", reduce=split, name="attn")
        if heads
        else Tap("blocks.*.attn_out", reduce=one, name="attn")
    )
    scale = _Scale(positions, FrozenNorm(lm.params["final_norm"], spec))
    taps = (
        *(Tap(site, reduce=one) for site in first),
        attn,
        Tap("blocks.*.mlp_out", reduce=one, name="mlp"),
        Tap(end, reduce=scale, name="scale"),
        *((Tap(end, reduce=one, name="stream"),) if edits else ()),
    )
    found = run(lm, tokens, taps, edits, sequences=sequences, logits=False)[1]

    by_layer = [found["mlp"][:, None]]
    if heads:
        each, bias = found["attn"]
        # [N, B, T, H, ...] to [N, H, B, T, ...]; T is not there at one position.
        axis = each.ndim - 1 - (direction is None)
        by_layer = [bias[:, None], *by_layer] if has_bias(spec) else by_layer
        by_layer = [jnp.moveaxis(each, axis, 1), *by_layer]
    else:
        by_layer = [found["attn"][:, None], *by_layer]
    blocks = jnp.concatenate(by_layer, axis=1)
    values = [found[site][None] for site in first]
    values.append(blocks.reshape(-1, *blocks.shape[2:]))
    names = names_of(spec, heads=heads)
    if edits:
        sums = sum(jnp.sum(value, axis=0) for value in values)
        values.append((found["stream"] - sums)[None])
        names += ("edits",)
    return Measured(jnp.concatenate(values), names, found["scale"])


def check_edits(spec: ModelConfig, edits: Sequence[Edit], where: str) -> None:
    """Refuses edits under which the stream is no sum of the parts, or not what is unembedded."""
    check_head(spec, edits, where)
    for edit in edits:
        if whole_block(edit.site):
            raise JaxdiffError(
                "a block that is skipped has no parts",
                where=f"{where}: {edit.site}",
                fix="set its attn_out and mlp_out to 0 instead: Set(0.0)",
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Part:
    """Reducer: the value at some positions, or how far it goes along a direction."""

    positions: Any
    direction: Any

    def __call__(self, value: Array, at: At) -> Array:
        value = at_positions(value, self.positions, at).astype(jnp.float32)
        if self.direction is None:
            return value
        return jnp.einsum("...d,...d->...", value, jnp.broadcast_to(self.direction, value.shape))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Scale:
    """Reducer: the scale of the final norm."""

    positions: Any
    norm: FrozenNorm

    def __call__(self, value: Array, at: At) -> Array:
        return self.norm.scale(at_positions(value, self.positions, at))
