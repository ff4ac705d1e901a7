"""What a format is: how its files are known, read and written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.dictionaries.normalization import Normalization
from jaxdiff.errors import JaxdiffError


class Imported(NamedTuple):
    """A dictionary from another tool's files.

    Attributes:
        dictionary: The dictionary, with the tool's own latents: `encode` of normalised activations
            gives what the tool's encoder gives for raw ones.
        normalization: What the tool does to activations first; the identity for most.
    """

    dictionary: Dictionary
    normalization: Normalization


@dataclass(frozen=True)
class Format:
    """One tool's files.

    Attributes:
        about: The tool and its files, for people.
        matches: Whether a folder or file looks like one of them, by names alone.
        read: Reads a dictionary.
        write: Writes a dictionary for activations normalised so into a folder.
        extras: Which of "transcoder", "skip" and "group_max" it can write.
    """

    about: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Imported]
    write: Callable[[Dictionary, Normalization, Path], None]
    extras: frozenset[str] = frozenset()


def unsupported(what: str, where: Path | str) -> JaxdiffError:
    """Returns the error for what the format has and a `Dictionary`, or the format, has not."""
    return JaxdiffError(f"there is no place for {what}", where=where)


def folder_of(path: Path) -> Path:
    """Returns the folder of the files, which may be named by one of them."""
    return path.parent if path.is_file() else path
