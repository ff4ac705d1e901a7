"""Edits and taps in files, and what names them."""

from collections.abc import Sequence
from pathlib import Path

from jaxdiff.edits._codec import REGISTRY
from jaxdiff.edits._edit import Edit
from jaxdiff.edits._format import Format
from jaxdiff.models import Tap

Item = Edit | Tap

_EDITS = Format("jaxdiff.edits", 1, "edits", "edits.save", REGISTRY, (Edit, Tap))


def save(items: Sequence[Item], path: str | Path) -> None:
    """Writes edits and taps to a `.safetensors` file.

    Raises:
        JaxdiffError: If one is made of classes that jaxdiff does not have.
    """
    _EDITS.save(items, path)


def load(path: str | Path) -> tuple[Item, ...]:
    """Reads what `save` wrote; arrays stay on the host until they are used.

    Raises:
        JaxdiffError: If the file is missing or damaged, or has a class, field or version that is
            not known here.
    """
    return _EDITS.load(path)


def dumps(items: Sequence[Item]) -> bytes:
    """Returns edits and taps as the bytes of a `.safetensors` file; equal ones give equal bytes.

    Raises:
        JaxdiffError: If one is made of classes that jaxdiff does not have.
    """
    return _EDITS.dumps(items)


def loads(data: bytes, *, where: object = "edits") -> tuple[Item, ...]:
    """Returns what `dumps` was given; safe with bytes from anyone.

    Args:
        data: The bytes.
        where: What errors call them.

    Raises:
        JaxdiffError: If they are damaged, or have a class, field or version that is not known.
    """
    return _EDITS.loads(data, where=where)


def content_hash(items: Sequence[Item]) -> str:
    """Returns a hash of structure and leaves; 16 hex digits, the same in every process.

    It is the same wherever the leaves are, on the host or on devices, and another one for another
    value or another dtype, as programs see it.

    Raises:
        JaxdiffError: If one is made of classes that jaxdiff does not have.
    """
    return _EDITS.content_hash(items)
