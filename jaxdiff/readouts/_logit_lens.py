"""Logit lens: what a model would say if its later layers did nothing (nostalgebraist, 2020)."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, At, Edit, ModelConfig, Tap, canonical_site, run, sites
from jaxdiff.models._check import checked
from jaxdiff.models._lm import module
from jaxdiff.models._traces import traced
from jaxdiff.readouts._affine import check_through, of_layer
from jaxdiff.readouts._head import check_head
from jaxdiff.readouts._positions import Positions, at_positions, checked_positions
from jaxdiff.readouts._reading import Reader, Reading, check_k, checked_tokens
from jaxdiff.types import HostOrDevice

_LOGITS_AT_ONCE = 2**28
"""More logits than these [numbers] are read in pieces."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lens:
    """Reducer: the final norm and the unembedding of a model, and what is kept of the logits.

        middle = models.Tap("blocks.4.resid_mid", reduce=Lens(lm, k=3))
        _, found = models.run(lm, tokens, (middle,), logits=False)
        found["blocks.4.resid_mid"].tokens   # [B, T, 3]

    Attributes:
        lm: Whose final norm and unembedding; that of another model reads across models.
        targets: Token ids `[]`, `[B]`, `[B, T]`, or `[B, T, K]` of several, where 1 stands for all.
        reference: Logits `[B, T, V]` that what is read is compared with.
        positions: Positions that are read, as in `logit_lens`; targets and reference are theirs.
        through: An `Affine` of each layer, `[N, E, D]`, that the value passes before the norm.
        k: How many of the likeliest tokens are kept.
        logits: Whether the logits are kept too.
    """

    lm: LM
    targets: Any = None
    reference: Any = None
    positions: Any = None
    through: Any = None
    k: int = field(default=5, metadata={"static": True})
    logits: bool = field(default=False, metadata={"static": True})

    def __call__(self, value: Array, at: At) -> Reading:
        """Returns what the logits of a value of the residual stream's width say."""
        check_head(self.lm.spec, self.lm.edits, "Lens")
        model = module(self.lm)
        value = at_positions(value, self.positions, at)
        if self.through is not None:
            value = of_layer(self.through, value, at, self.lm.spec.d_model)

        def read(x: Array, targets: Any, reference: Any) -> Reading:
            reader = Reader(targets, reference, k=self.k, logits=self.logits)
            return reader(model.unembed(model.final_norm(x)))

        lead = value.shape[:-1]
        tokens = value.size // value.shape[-1]
        if tokens * self.lm.spec.vocab_size <= _LOGITS_AT_ONCE or self.logits:
            return read(value, self.targets, self.reference)
        targets = self.targets
        if targets is not None:
            targets = jnp.asarray(targets)
            own = targets.shape[len(lead) :]
            targets = targets.reshape(*targets.shape, *(1,) * (len(lead) - targets.ndim))
            targets = jnp.broadcast_to(targets, (*lead, *own)).reshape(-1, *own)
        reference = self.reference
        if reference is not None:
            reference = jnp.broadcast_to(reference, (*lead, reference.shape[-1]))
            reference = reference.reshape(tokens, -1)
        rows = value.reshape(tokens, -1)
        at_once = max(1, _LOGITS_AT_ONCE // self.lm.spec.vocab_size)
        out = jax.lax.map(
            lambda given: read(*given), (rows, targets, reference), batch_size=at_once
        )
        return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), out)


def logit_lens(
    lm: LM,
    tokens: Int[HostOrDevice, "B T"],
    *,
    site: str = "blocks.*.resid_post",
    k: int = 5,
    targets: Any = None,
    kl: bool = False,
    through: Any = None,
    positions: Any = None,
    logits: bool = False,
    edits: Sequence[Edit] = (),
    sequences: Int[HostOrDevice, "B T"] | None = None,
) -> Reading:
    """Reads every layer's stream as if it were the last one's.

        logits = unembed(final_norm(stream of the layer))

    With `through`, a map of each layer comes first: see `train_lens` and `jacobian_lens`. The final
    norm, the unembedding and the soft cap are the model's. Layers are read inside the program, one
    at a time, so that only what is kept of the logits is ever stored.

        lens = logit_lens(lm, tokens, targets=answer, kl=True)
        lens.tokens[:, 0, -1, 0]      # the likeliest next token at each layer
        lens.rank[:, 0, -1]           # how many tokens are likelier than the answer
        show(lens, decode=tokenizer.decode)

    Args:
        lm: The model.
        tokens: Token ids.
        site: What is read: a site as wide as the residual stream, of all layers
            (`blocks.*.attn_out`, `blocks.*.mlp_out`) or of one.
        k: How many of the likeliest tokens are kept.
        targets: Tokens to follow: `[]`, `[B]`, `[B, T]`, or `[B, T, K]` of several, where 1 stands
            for all; T are the positions that are read.
        kl: Whether each layer's distribution is compared with the model's own, for which the model
            is run once more.
        through: An `Affine` of each layer: weight `[N, D, D]`, bias `[N, D]`.
        positions: Positions that are read, `[P]`, or `[B, P]`, for each row its own, -1 is the last
            token that is no padding; one number leaves out the axis of positions. All when None.
        logits: Whether the logits of all layers are returned too, `[N, B, T, V]`.
        edits: Edits, as in `models.run`.
        sequences: Document of each token, as in `models.run`.

    Returns:
        What is kept, `[N, B, T, ...]`, or without N at one layer.

    Raises:
        JaxdiffError: If there is no such site, it is not as wide as the stream, k, a target or a
            position does not exist, or `through` has no map of each layer.
    """
    check_width(lm.spec, site)
    check_k(lm.spec, k)
    targets = checked_tokens(lm.spec, targets)
    positions = checked_positions(positions, tokens.shape[1], where="logit_lens: positions")
    checked(lm, (site,), edits, tokens)
    check_head(lm.spec, (*lm.edits, *edits), "logit_lens")
    if through is not None:
        inside = canonical_site(lm.spec, site).startswith("blocks.")
        shape = (lm.spec.n_layers, lm.spec.d_model, lm.spec.d_model)
        check_through(through, shape, inside=inside, where="logit_lens: through")
    lens = Lens(lm, targets, None, positions, through, k=k, logits=logits)
    return _logit_lens(lm, tokens, Tap(site, reduce=lens), tuple(edits), sequences, kl=kl)


@functools.partial(jax.jit, static_argnames="kl", inline=True)
@traced("logit_lens")
def _logit_lens(lm, tokens, tap, edits, sequences, *, kl):
    lens = tap.reduce
    if kl:
        keep = Positions(lens.positions)
        end = (Tap("logits", reduce=keep, name="logits"),)
        found = run(lm, tokens, end, edits, sequences=sequences, logits=False)[1]
        tap = replace(tap, reduce=replace(lens, reference=found["logits"]))
    return run(lm, tokens, (tap,), edits, sequences=sequences, logits=False)[1][tap.site]


def check_width(spec: ModelConfig, site: str) -> None:
    """Refuses a site that the final norm cannot read."""
    canonical = canonical_site(spec, site)
    shape = sites(spec)[canonical.replace("*", "0")]
    if shape != ("B", "T", spec.d_model):
        raise JaxdiffError(
            f"a lens reads values as wide as the residual stream, here they are {list(shape)}",
            where=site,
            fix="read resid_pre, attn_out, resid_mid, mlp_out or resid_post",
        )
