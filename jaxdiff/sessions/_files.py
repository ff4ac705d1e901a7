"""Sessions in files, and what names them."""

from pathlib import Path

from jaxdiff.edits._codec import REGISTRY
from jaxdiff.edits._format import Format
from jaxdiff.errors import JaxdiffError
from jaxdiff.sessions._check import check, said_of
from jaxdiff.sessions._step import Session, Step
from jaxdiff.sessions.values import VALUES

_KINDS = {kind.__name__: kind for kind in (Session, Step, *VALUES)}
_SESSION = Format(
    "jaxdiff.session", 1, "a session", "sessions.save", {**REGISTRY, **_KINDS}, (Session,)
)


def save(session: Session, path: str | Path) -> None:
    """Writes a session to a `.safetensors` file; models are not in it, only their names.

    Raises:
        JaxdiffError: If a part of it is of a class that jaxdiff does not have, like an own op.
    """
    check(session)
    _SESSION.save((session,), path)


def load(path: str | Path) -> Session:
    """Reads what `save` wrote; arrays stay on the host until they are used.

    Raises:
        JaxdiffError: If the file is missing or damaged, has a class, field or version that is not
            known here, or holds a session that `session` would refuse.
    """
    return _one(_SESSION.load(path), path)


def dumps(session: Session) -> bytes:
    """Returns a session as the bytes of a `.safetensors` file; equal ones give equal bytes.

    Raises:
        JaxdiffError: As `save` does.
    """
    check(session)
    return _SESSION.dumps((session,))


def loads(data: bytes, *, where: object = "session") -> Session:
    """Returns what `dumps` was given; safe with bytes from anyone, of which nothing is executed.

    Args:
        data: The bytes.
        where: What errors call them.

    Raises:
        JaxdiffError: As `load` does.
    """
    return _one(_SESSION.loads(data, where=where), where)


def content_hash(session: Session) -> str:
    """Returns a hash of structure and leaves; 16 hex digits, the same in every process.

    Raises:
        JaxdiffError: As `save` does.
    """
    check(session)
    return _SESSION.content_hash((session,))


def _one(found: tuple[Session, ...], where: object) -> Session:
    if len(found) != 1:
        raise JaxdiffError(f"a file of {len(found)} sessions", where=where, fix="it holds one")
    with said_of(where):
        check(found[0])
    return found[0]
