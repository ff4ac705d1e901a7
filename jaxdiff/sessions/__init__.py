"""Several runs as one job: a value that says them, one program that computes them.

    patch = edit(site, Set(Captured("clean", site)))
    job = session(
        (
            step("clean", "base", clean, taps=(site,)),
            step("patched", "ft", clean, edits=(patch,), logits=True),
        ),
        keep=(Captured("patched", "logits"),),
    )
    (logits,) = sessions.run(job, {"base": base, "ft": ft})

What a step captures stays on the device, and later steps use it as a leaf of their edits.
"""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazy

if TYPE_CHECKING:
    from jaxdiff.sessions._files import content_hash as content_hash
    from jaxdiff.sessions._files import dumps as dumps
    from jaxdiff.sessions._files import load as load
    from jaxdiff.sessions._files import loads as loads
    from jaxdiff.sessions._files import save as save
    from jaxdiff.sessions._run import run as run
    from jaxdiff.sessions._run import shapes as shapes
    from jaxdiff.sessions._session import session as session
    from jaxdiff.sessions._session import step as step
    from jaxdiff.sessions._step import Session as Session
    from jaxdiff.sessions._step import Step as Step
    from jaxdiff.sessions.values import Average as Average
    from jaxdiff.sessions.values import Captured as Captured
    from jaxdiff.sessions.values import Difference as Difference
    from jaxdiff.sessions.values import PerRow as PerRow

# Flax is imported, by the models, at the first use of one of these names.
_HOMES = {
    "Average": "values",
    "Captured": "values",
    "Difference": "values",
    "PerRow": "values",
    "Session": "_step",
    "Step": "_step",
    "content_hash": "_files",
    "dumps": "_files",
    "load": "_files",
    "loads": "_files",
    "run": "_run",
    "save": "_files",
    "session": "_session",
    "shapes": "_run",
    "step": "_session",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy(__name__, _HOMES)
