"""Sessions as values: named steps, each a run, whose edits may use what earlier steps captured."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int

from jaxdiff.edits import Edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import Tap
from jaxdiff.models._run import Logits
from jaxdiff.sessions._check import check
from jaxdiff.sessions._step import Session, Step
from jaxdiff.sessions.values import Value
from jaxdiff.types import HostOrDevice


def step(
    name: str,
    model: str,
    tokens: Int[HostOrDevice, "B T"],
    taps: Sequence[str | Tap] = (),
    edits: Sequence[Edit] = (),
    *,
    sequences: Int[HostOrDevice, "B T"] | None = None,
    positions: Int[HostOrDevice, "B T"] | None = None,
    logits: Logits = False,
) -> Step:
    """Makes a step: one `models.run`, whose taps later steps may use.

        step("patched", "ft", tokens, edits=(edit(site, Set(Captured("clean", site))),))

    Args:
        name: What later steps call it.
        model: Name of the model that it runs.
        tokens: As in `run`.
        taps: As in `run`.
        edits: As in `run`; a leaf of an op, view or reducer may be a value of an earlier step:
            `Captured`, or a `Difference`, `Average` or `PerRow` of such ones.
        sequences: As in `run`.
        positions: As in `run`.
        logits: As in `run`; none by default.

    Raises:
        JaxdiffError: If taps are no tuple.
    """
    if isinstance(taps, str):
        raise JaxdiffError("taps are a tuple", where=f"step {name!r}", fix=f"write ({taps!r},)")
    whole = _tuple(taps)
    if isinstance(whole, tuple):
        whole = tuple(Tap(tap) if isinstance(tap, str) else tap for tap in whole)
    return Step(name, model, tokens, whole, _tuple(edits), sequences, positions, logits)


def session(steps: Sequence[Step], keep: Sequence[Value]) -> Session:
    """Makes a session of steps, each of which may use what those before it captured.

        last = Tap(site, reduce=Last())
        vector = Difference(Average(Captured("warm", site)), Average(Captured("cold", site)))
        steer = edit(site, Add(vector, 4.0))
        job = session(
            (
                step("warm", "ft", warm, taps=(last,)),
                step("cold", "ft", cold, taps=(last,)),
                step("steered", "ft", prompts, edits=(steer,), logits="last"),
            ),
            keep=(vector, Captured("steered", "logits")),
        )

    Names of steps, taps and models decide the program, as the structure of edits does; tokens and
    the leaves of edits are arguments of it. What nobody uses is not computed.

    Args:
        steps: Steps, in order.
        keep: What is returned of them; the rest stays in the program.

    Raises:
        JaxdiffError: If a name is there twice, or something that is used is not captured before.
    """
    made = Session(_tuple(steps), _tuple(keep))
    check(made)
    return made


def _tuple(items: Any) -> Any:
    """Returns a sequence as a tuple; anything else as it is, for `check` to refuse."""
    return tuple(items) if isinstance(items, Sequence) else items
