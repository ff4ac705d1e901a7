"""Several models, or one model on several texts, through the blocks in lockstep."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Int

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._check import checked
from jaxdiff.models._forward import Between
from jaxdiff.models._lm import LM, stacked
from jaxdiff.models._run import Logits, forward, world_of
from jaxdiff.models._sites import canonical_site, layer_and_part
from jaxdiff.models._tap import Edit, Tap, as_pytree
from jaxdiff.models._traces import traced
from jaxdiff.types import HostOrDevice


class Together(NamedTuple):
    """What `run_together` returns.

    Attributes:
        logits: Of each world.
        taps: What was tapped in each world, by name.
        between: What was made of all worlds at once, by name.
    """

    logits: tuple[Array | None, ...]
    taps: tuple[dict[str, Any], ...]
    between: dict[str, Any]


def run_together(
    lms: Sequence[LM],
    tokens: Int[HostOrDevice, "B T"] | Int[HostOrDevice, "M B T"],
    taps: Sequence[str | Tap] = (),
    edits: Sequence[Sequence[Edit]] = (),
    between: Sequence[Between] = (),
    *,
    sequences: Int[HostOrDevice, "B T"] | None = None,
    positions: Int[HostOrDevice, "B T"] | None = None,
    logits: Logits = True,
    remat: bool = False,
) -> Together:
    """Runs M worlds (a model on a batch each) in one program, block by block.

    An edit of a later world may use what an earlier one computed at the same site
    (`edits.FromWorld`), so patching from the base into the fine-tune is one call; and what differs
    between the worlds can be reduced inside the program (`between`), so that no activations are
    kept. The same model may be given several times: its weights are not copied.

    Args:
        lms: The models, with as many blocks each; they may differ in all else that the edits and
            `between` do not compare.
        tokens: What all worlds read, or each its own.
        taps: Read in every world.
        edits: Edits of each world; none when empty.
        between: Read of all worlds at once.
        sequences: Document of each token, as in `run`.
        positions: Position of each token, as in `run`.
        logits: As in `run`.
        remat: As in `run`.

    Returns:
        Logits and taps of each world, and what lies between them.

    Raises:
        JaxdiffError: If the models do not go together, or as `run` does.
    """
    if isinstance(lms, LM):
        raise JaxdiffError("lms are several models", where="run_together", fix="(base, ft)")
    lms = tuple(lms)
    _check_models(lms)
    each = list(tokens) if getattr(tokens, "ndim", 3) == 3 else [tokens] * len(lms)
    edits = tuple(edits) or ((),) * len(lms)
    if len(each) != len(lms) or len(edits) != len(lms):
        raise JaxdiffError(
            f"{len(lms)} models, tokens for {len(each)} and edits for {len(edits)}",
            where="run_together",
            fix="give edits as one tuple a model: edits=((), (edit,))",
        )
    asked = [checked(lm, taps, own, ids) for lm, own, ids in zip(lms, edits, each, strict=True)]
    _check_between(lms, between, [a.skipped for a in asked])
    canonical = tuple(
        replace(
            b,
            site=canonical_site(lms[-1].spec, b.site),
            reduce=as_pytree(b.reduce),
            name=b.name or b.site,
        )
        for b in between
    )
    return _run_together(
        tuple(a.lm for a in asked),
        tuple(each),
        tuple(a.taps for a in asked),
        tuple(a.edits for a in asked),
        canonical,
        sequences,
        positions,
        skipped=tuple(a.skipped for a in asked),
        logits=logits,
        remat=remat,
    )


@functools.partial(jax.jit, static_argnames=("skipped", "logits", "remat"), inline=True)
@traced("run_together")
def _run_together(
    lms, tokens, taps, edits, between, sequences, positions, *, skipped, logits, remat
) -> Together:
    worlds = tuple(
        world_of(*parts[:4], sequences, positions, parts[4])
        for parts in zip(lms, tokens, taps, edits, skipped, strict=True)
    )
    out, kept, _ = forward(
        worlds, tokens, between, logits=logits, remat=remat, length=tokens[0].shape[1]
    )
    return Together(tuple(out), kept.worlds, kept.between)


def _check_between(
    lms: tuple[LM, ...], between: Sequence[Between], skipped: Sequence[frozenset[int]]
) -> None:
    """Refuses what is read between worlds where one of them has no value."""
    if isinstance(between, Between):
        raise JaxdiffError("`between` is a tuple", where=between.site, fix="write (Between(...),)")
    names = [b.name or b.site for b in between]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise JaxdiffError(f"several are called {', '.join(twice)}", where="between")
    for asked in between:
        for lm, gone in zip(lms, skipped, strict=True):
            layer, _ = layer_and_part(canonical_site(lm.spec, asked.site))
            if gone and (layer == "*" or layer in {str(number) for number in gone}):
                raise JaxdiffError(
                    "a block that is skipped in one of the worlds has no values between them",
                    where=asked.site,
                    fix="name the sites of other blocks, one by one",
                )


def _check_models(lms: tuple[LM, ...]) -> None:
    for name, values in {
        "blocks": [lm.spec.n_layers for lm in lms],
        "layouts of weights": ["stacked" if stacked(lm) else "apart" for lm in lms],
        "vocabularies": [lm.spec.vocab_size for lm in lms],
    }.items():
        if len(set(values)) > 1:
            raise JaxdiffError(
                f"the models have different {name}: {', '.join(map(str, values))}",
                where="run_together",
                fix="`models.stack` and `models.unstack` change the layout"
                if "layout" in name
                else "run them one by one, and patch with `edits.Patch`",
            )
