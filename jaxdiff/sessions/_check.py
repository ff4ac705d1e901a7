"""What a session must be, checked before anything is traced; it may come from a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxdiff.edits import Edit
from jaxdiff.errors import JaxdiffError, nearest
from jaxdiff.models import Tap
from jaxdiff.models._check import check_leaves
from jaxdiff.sessions._step import Session, Step
from jaxdiff.sessions.values import VALUES, Captured, captured_in


def check(session: Session) -> None:
    """Refuses a session that uses what no earlier step captures.

    Raises:
        JaxdiffError: As `session` does.
    """
    if not isinstance(session, Session):
        raise JaxdiffError(f"{type(session).__name__} is no session", fix="sessions.session(...)")
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
        check_leaves(each, here)
    for used in captured_in(keep):
        _check_captured(used, makes, [], "keep")
    check_leaves(keep, "keep")


@contextmanager
def said_of(here: object) -> Iterator[None]:
    """Says what an error is of: a step, or a file; also one of a part that is of a wrong type."""
    try:
        yield
    except JaxdiffError as error:
        where = ", ".join(str(part) for part in (here, error.where) if part)
        raise JaxdiffError(error.what, where=where, fix=error.fix) from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        what = str(error).strip().partition("\n")[0]
        raise JaxdiffError(f"{type(error).__name__}: {what}", where=str(here)) from error


def _check_captured(
    used: Captured, makes: dict[str, tuple[str, ...]], later: list[str], here: str
) -> None:
    """Refuses a value that is not there yet, or never."""
    if not (isinstance(used.step, str) and isinstance(used.tap, str)):
        raise JaxdiffError(
            f"{used} has other parts than names", where=here, fix="Captured(step, tap)"
        )
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
    for items, part, what in ((steps, "steps", "step"), (keep, "keep", "value that is kept")):
        if not isinstance(items, tuple):
            raise JaxdiffError(
                f"{part} is a tuple, not {type(items).__name__}",
                where="session",
                fix="put one into a tuple: (one,)",
            )
        if not items:
            raise JaxdiffError(f"a session without a {what}", where="session")
    for each in steps:
        if not isinstance(each, Step):
            raise JaxdiffError(f"{type(each).__name__} is no step", fix="sessions.step(...)")
        if not each.name or not isinstance(each.name, str):
            raise JaxdiffError("a step needs a name", where="step")
        if not isinstance(each.model, str):
            raise JaxdiffError(
                f"a model is given by its name, not as {type(each.model).__name__}",
                where=f"step {each.name!r}",
                fix="sessions.run(job, {name: lm}) has the models",
            )
        for part, kind in (("taps", Tap), ("edits", Edit)):
            items = getattr(each, part)
            whole = isinstance(items, tuple)
            strange = [type(i).__name__ for i in items if not isinstance(i, kind)] if whole else []
            if strange or not whole:
                raise JaxdiffError(
                    f"{part} with {', '.join(strange) or type(items).__name__}",
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
