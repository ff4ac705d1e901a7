"""Sessions as values: named steps, each a run, whose edits may use what earlier steps captured."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
from jaxtyping import Int

from jaxdiff.edits import Edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import Tap
from jaxdiff.models._run import Logits
from jaxdiff.sessions.values import VALUES, Captured, Value, captured_in
from jaxdiff.types import HostOrDevice


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Step:
    """What `step` makes; `step` says what the fields are, and `check` that they are it."""

    name: str = field(metadata={"static": True})
    model: str = field(metadata={"static": True})
    tokens: Any
    taps: Any = ()
    edits: Any = ()
    sequences: Any = None
    positions: Any = None
    logits: Logits = field(default=False, metadata={"static": True})

    @property
    def makes(self) -> tuple[str, ...]:
        """Names of what later steps may use."""
        return (*(tap.name or tap.site for tap in self.taps), *("logits",) * bool(self.logits))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Session:
    """What `session` makes.

    Attributes:
        steps: `Step`s in the order in which they are computed.
        keep: What is returned: a tuple of `Captured` and the like.
    """

    steps: Any
    keep: Any


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
        edits: As in `run`; a leaf of an edit or tap may be a value of an earlier step: `Captured`,
            or a `Difference`, `Average` or `PerRow` of such ones.
        sequences: As in `run`.
        positions: As in `run`.
        logits: As in `run`; none by default.

    Raises:
        JaxdiffError: If taps are no tuple.
    """
    if isinstance(taps, str):
        raise JaxdiffError("taps are a tuple", where=f"step {name!r}", fix=f"write ({taps!r},)")
    whole = tuple(Tap(tap) if isinstance(tap, str) else tap for tap in taps)
    return Step(name, model, tokens, whole, tuple(edits), sequences, positions, logits)


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
    made = Session(tuple(steps), tuple(keep))
    check(made)
    return made


def check(session: Session) -> None:
    """Refuses a session that uses what no earlier step captures.

    Raises:
        JaxdiffError: As `session` does.
    """
    steps, keep = session.steps, session.keep
    _check_types(steps, keep)
    makes: dict[str, tuple[str, ...]] = {}
    for each in steps:
        here = f"step {each.name!r}"
        for used in captured_in((each.taps, each.edits)):
            _check_captured(used, makes, [s.name for s in steps[len(makes) :]], here)
        twice = sorted({name for name in each.makes if each.makes.count(name) > 1})
        if twice:
            raise JaxdiffError(
                f"several taps are called {', '.join(twice)}", where=here, fix="Tap(..., name=...)"
            )
        if each.name in makes:
            raise JaxdiffError("two steps have this name", where=here, fix="give each its own")
        makes[each.name] = each.makes
    for used in captured_in(keep):
        _check_captured(used, makes, [], "keep")


@contextmanager
def said_of(here: object) -> Iterator[None]:
    """Says what an error is of: a step, or a file."""
    try:
        yield
    except JaxdiffError as error:
        where = ", ".join(str(part) for part in (here, error.where) if part)
        raise JaxdiffError(error.what, where=where, fix=error.fix) from error


def _check_captured(
    used: Captured, makes: dict[str, tuple[str, ...]], later: list[str], here: str
) -> None:
    """Refuses a value that is not there yet, or never."""
    if used.step in makes:
        if used.tap not in makes[used.step]:
            raise JaxdiffError(
                f"step {used.step!r} captures no {used.tap!r}",
                where=here,
                fix=nearest(used.tap, makes[used.step]) or "give it a tap, or logits=True",
            )
    elif used.step in later:
        raise JaxdiffError(
            f"{used.step!r} is not computed before it",
            where=here,
            fix="steps use what steps before them captured: change their order",
        )
    else:
        raise JaxdiffError(
            f"there is no step {used.step!r}", where=here, fix=nearest(used.step, makes)
        )


def _check_types(steps: Any, keep: Any) -> None:
    """Refuses parts that are of other classes, as those of a file may be."""
    for items, what in ((steps, "step"), (keep, "value that is kept")):
        if not isinstance(items, tuple) or not items:
            raise JaxdiffError(f"a session without a {what}", where="session")
    for each in steps:
        if not isinstance(each, Step):
            raise JaxdiffError(f"{type(each).__name__} is no step", fix="sessions.step(...)")
        if not each.name:
            raise JaxdiffError("a step needs a name", where="step")
        for part, kind in (("taps", Tap), ("edits", Edit)):
            items = getattr(each, part)
            items = items if isinstance(items, tuple) else (items,)
            strange = [type(item).__name__ for item in items if not isinstance(item, kind)]
            if strange:
                raise JaxdiffError(
                    f"{part} with {', '.join(strange)}",
                    where=f"step {each.name!r}",
                    fix=f"they are a tuple of {kind.__name__}",
                )
        if any(tap.offload for tap in each.taps):
            raise JaxdiffError(
                "what a step captures stays on the device",
                where=f"step {each.name!r}",
                fix="leave offload out, and keep less: a reducer, dtype='bfloat16'",
            )
    strange = [type(value).__name__ for value in keep if not isinstance(value, VALUES)]
    if strange:
        raise JaxdiffError(
            f"{', '.join(strange)} is nothing to keep", where="keep", fix="Captured(step, tap)"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the names that are most like one, for an error; all where none is."""
    known = tuple(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
    return f"nearest: {', '.join(near)}" if near else ""
