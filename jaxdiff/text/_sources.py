"""Opening corpora: which files a source means, what they hold, and a hash of their content."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jaxdiff.config import SourceConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.text._files import FileSource
from jaxdiff.text._hub import PREFIX, HubSource
from jaxdiff.text._parquet import ParquetSource

EXTENSIONS = (".txt", ".jsonl", ".parquet")


Source = FileSource | HubSource | ParquetSource
"""Documents by index, `{"name", "text" | "messages"}`: a Grain random access source."""


def open_source(config: SourceConfig) -> list[Source]:
    """Opens a corpus.

    Args:
        config: Where it is.

    Returns:
        Its non-empty parts; the corpus is their concatenation.

    Raises:
        JaxdiffError: If a file is missing, has an unknown extension, or there is no document.
    """
    parts = _open(config)
    if not parts:
        raise JaxdiffError(
            "the corpus is empty: it has no documents",
            where=config.path,
            fix="give a source with text, or take it out of text.sources",
        )
    return parts


def fingerprint(sources: Sequence[SourceConfig]) -> str:
    """Returns a hash of what the corpora hold, wherever they lie; 16 hex digits.

    Files count with their names inside the corpus and their contents, Hugging Face datasets with
    the fingerprint that `datasets` keeps.

    Raises:
        JaxdiffError: If a corpus cannot be found.
    """
    digest = hashlib.sha256()
    for source in sources:
        if source.path.startswith(PREFIX):
            digest.update(HubSource(source.path, source.split, source.column).fingerprint.encode())
            continue
        root = Path(source.path)
        for path in _files(root):
            name = path.relative_to(root).as_posix() if path != root else path.name
            stat = path.stat()
            digest.update(name.encode() + b"\0")
            digest.update(_hash(path, stat.st_size, stat.st_mtime_ns))
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def _open(config: SourceConfig) -> list[Source]:
    if config.path.startswith(PREFIX):
        parts: list[Source] = [HubSource(config.path, config.split, config.column)]
    else:
        files = _files(Path(config.path))
        parts = [FileSource(p, config.column) for p in files if p.suffix != ".parquet"]
        tables = tuple(p for p in files if p.suffix == ".parquet")
        if tables:
            parts.append(ParquetSource(tables, config.column))
    return [part for part in parts if len(part)]


def _files(path: Path) -> list[Path]:
    known = ", ".join(EXTENSIONS)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in EXTENSIONS and p.is_file())
        if not files:
            raise JaxdiffError(f"this folder holds no {known} files", where=path)
        return files
    if not path.exists():
        raise JaxdiffError(
            "there is no such file or folder",
            where=path,
            fix=f"give a {known} file, a folder of them, or {PREFIX}DATASET",
        )
    if path.suffix not in EXTENSIONS:
        raise JaxdiffError(
            f"the extension {path.suffix!r} is not known; known are {known}", where=path
        )
    return [path]


@functools.lru_cache(maxsize=4096)
def _hash(path: Path, size: int, changed: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
