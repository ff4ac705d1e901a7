"""Documents of .txt and .jsonl files, read by byte range: any one of them is quick to get."""

import codecs
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.errors import JaxdiffError
from jaxdiff.text._rows import to_document


class FileSource:
    """The documents of one file.

    A .txt file is split at blank lines: each paragraph is a document. A .jsonl file has one JSON
    object a line; blank lines are no documents. The file is scanned once, when it is opened; it is
    opened for each read, so the source can be pickled and shared by threads and processes.

    Args:
        path: The file.
        column: Key of the document in a JSON object; found by name when None. Unused for .txt.
    """

    def __init__(self, path: Path, column: str | None = None):
        self.path = path
        self.column = column
        stat = path.stat()
        self._spans = _spans(path, stat.st_size, stat.st_mtime_ns)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, stop, line = (int(value) for value in self._spans[index])
        with self.path.open("rb") as file:
            file.seek(start)
            raw = file.read(stop - start)
        where = f"{self.path}, line {line}"
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise JaxdiffError(f"this is not UTF-8: {error}", where=where) from None
        if self.path.suffix == ".txt":
            return {"name": where, "text": text.replace("\r\n", "\n").strip("\n")}
        return to_document(_parse(text, where), self.column, where=where)

    def __repr__(self) -> str:
        return f"FileSource({self.path}, documents={len(self)})"


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise JaxdiffError(
            f"this line is not JSON: {error.msg} (character {error.pos + 1})",
            where=where,
            fix="each line of a .jsonl file is one JSON object",
        ) from None
    if not isinstance(row, dict):
        raise JaxdiffError(
            f"this line should be a JSON object, it is of type {type(row).__name__}", where=where
        )
    return row


# Size and time are part of the key, so that a file that was changed is scanned again.
@functools.lru_cache(maxsize=4096)
def _spans(path: Path, size: int, changed: int) -> np.ndarray:
    with path.open("rb") as file:
        find = _paragraphs if path.suffix == ".txt" else _lines
        found = list(find(file))
    return np.array(found, np.int64).reshape(-1, 3)


def _lines(file: Any) -> Iterator[tuple[int, int, int]]:
    """Yields (first byte, byte after the last, line number) of each line that is not blank."""
    start = 0
    for number, line in enumerate(file, 1):
        stop = start + len(line)
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            start, line = len(codecs.BOM_UTF8), line[len(codecs.BOM_UTF8) :]
        if not line.isspace() and line:
            yield start, stop, number
        start = stop


def _paragraphs(file: Any) -> Iterator[tuple[int, int, int]]:
    """Yields the same for each run of lines without a blank one between them."""
    start, stop, first, last = 0, 0, 0, -1
    for begin, end, number in _lines(file):
        if number != last + 1:
            if first:
                yield start, stop, first
            start, first = begin, number
        stop, last = end, number
    if first:
        yield start, stop, first
