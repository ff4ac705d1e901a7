"""What users of jaxdiff are meant to read when something ends early."""

import difflib
from collections.abc import Iterable


class JaxdiffError(Exception):
    """Something that was given cannot be used; the message is for a person.

    The command line prints it without a traceback and exits with its code. Raise it at the edge,
    before tracing, as `JaxdiffError(what, where=..., fix=...)`.

    Attributes:
        code: Exit code of the command line.
        what: The rule that was broken and what was given instead.
        where: The file, config field or site concerned; empty when `what` says it.
        fix: What to do about it; empty when `what` says it.
    """

    code = 2

    def __init__(self, what: str, *, where: object = "", fix: str = ""):
        self.what = what
        self.where = str(where)
        self.fix = fix
        super().__init__(what, self.where, fix)

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"  where: {self.where}")
        if self.fix:
            parts.append(f"  fix:   {self.fix}")
        return "\n".join(parts)


class Preempted(JaxdiffError):
    """The machine was asked for by someone else; what was done is saved.

    The code is that of a process which SIGTERM ended: a scheduler may start the run again.
    """

    code = 143


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the names that are most like one, as a fix; all where none is, nothing of nothing."""
    known = tuple(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
    return f"nearest: {', '.join(near)}" if near else ""
