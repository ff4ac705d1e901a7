"""Content-addressed stages: a stage's folder says what made it, and appears only when complete."""

import contextlib
import datetime
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import barrier
from jaxdiff.progress import log

FILE = "manifest.json"
_PACKAGES = (
    "jaxdiff",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "transformers",
)


@dataclass(frozen=True)
class Manifest:
    """What made a stage.

    Attributes:
        stage: Name of the stage.
        fingerprint: Hash of stage, config, inputs and seed; equal means: same result.
        config: Settings of the stage.
        inputs: Fingerprints of what the stage reads, by name.
        seed: Seed of the stage.
        versions: Versions of the packages that computed it.
        created: Time of completion, UTC, ISO 8601.
        seconds: Time that the process which completed it spent on it [seconds].
        outputs: Size in bytes of every file, by path relative to the folder.
    """

    stage: str
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    seed: int
    versions: dict[str, str]
    created: str
    seconds: float
    outputs: dict[str, int]


def fingerprint(
    stage: str, *, config: Mapping[str, Any], inputs: Mapping[str, str], seed: int
) -> str:
    """Returns a hash of all that decides a stage's result; 16 hex digits."""
    text = json.dumps([stage, dict(config), dict(inputs), seed], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_files(folder: Path, pattern: str = "**/*") -> str:
    """Returns a hash of the names and contents of the files under a folder; 16 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.glob(pattern) if p.is_file()):
        found = path.stat()
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(_hash_file(path, found.st_size, found.st_mtime_ns))
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=1024)
def _hash_file(path: Path, size: int, mtime_ns: int) -> bytes:
    """Hashes a file's content once a process, as long as it does not change."""
    del size, mtime_ns
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def read(folder: Path) -> Manifest:
    """Reads a complete stage's manifest and checks that its files are all there.

    Raises:
        JaxdiffError: If there is no manifest, it cannot be parsed, or a file is missing or has
            another size than when the stage was committed.
    """
    path = folder / FILE
    try:
        manifest = Manifest(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise JaxdiffError(
            "this is no complete stage: it has no manifest",
            where=folder,
            fix="run the stage that writes it (jaxdiff harvest, train, diff; or run for all)",
        ) from None
    except (ValueError, TypeError) as error:
        raise JaxdiffError(
            f"the manifest cannot be read: {error}",
            where=path,
            fix="delete the folder and run the stage again",
        ) from None
    for name, size in manifest.outputs.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise JaxdiffError(
                f"the folder does not match its manifest: {name} should have {size} bytes, "
                + ("it is missing" if found is None else f"it has {found}"),
                where=folder,
                fix="delete the folder and run the stage again",
            )
    return manifest


@contextlib.contextmanager
def stage(
    folder: Path,
    name: str,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    seed: int,
    among: int = 1,
) -> Iterator[Path | None]:
    """Runs a stage at most once; with several processes, all of them enter it.

    Yields a working folder, kept if the process dies, so that the same stage finds what it left
    there; it becomes `folder` by renaming when the block ends without an error. Yields None when
    `folder` already holds the stage's result. A result made from other inputs, and unfinished work
    for others, stay until then.

    Args:
        folder: Where the result will be.
        name: Name of the stage.
        config: Settings that decide the result.
        inputs: Fingerprints of what the stage reads, by name.
        seed: Seed of the stage.
        among: Stages done in the same time, this one too; each is said to have taken its share.

    Yields:
        The working folder, or None when there is nothing to do.

    Raises:
        JaxdiffError: If `folder` holds something that is no stage, a damaged result, or the disk
            is full.
    """
    mark = fingerprint(name, config=config, inputs=inputs, seed=seed)
    if stated_fingerprint(folder) == mark:
        read(folder)
        yield None
        return
    if folder.exists() and not (folder / FILE).exists() and any(folder.iterdir()):
        raise JaxdiffError(
            "this folder holds files that jaxdiff did not write",
            where=folder,
            fix="choose another output folder",
        )
    if folder.exists() and any(folder.iterdir()):
        log(f"{folder} holds a result of other settings or inputs; the new one will replace it")
    work = folder.with_name(f"{folder.name}.partial-{mark}")
    barrier(f"enter {work}")
    started = time.monotonic()
    try:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        barrier(f"leave {work}")
        if jax.process_index() == 0:
            seconds = round((time.monotonic() - started) / among, 3)
            _write(work, name, mark, config, inputs, seed, seconds)
            _replace(folder, work)
    except OSError as error:
        raise _explain(error, work) from error
    barrier(f"done {work}")


def expect(folder: Path, mark: str) -> Manifest:
    """Reads a complete stage that must be the one with this fingerprint.

    Raises:
        JaxdiffError: If it is missing, damaged, or was made from other settings or inputs.
    """
    found = read(folder)
    if found.fingerprint != mark:
        raise JaxdiffError(
            f"the {found.stage} in this folder was made from other settings or inputs: its "
            f"manifest says {found.fingerprint}, these settings ask for {mark}",
            where=folder,
            fix=f"run `jaxdiff {found.stage}` with these settings, or choose another --out",
        )
    return found


def stated_fingerprint(folder: Path) -> str | None:
    """Returns the fingerprint that a folder's manifest states, or None if it cannot be read."""
    try:
        return json.loads((folder / FILE).read_text())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def versions() -> dict[str, str]:
    """Returns the installed versions of jaxdiff and of the libraries that decide its results."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that it is either absent, old or complete, also after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _replace(folder: Path, work: Path) -> None:
    """Puts a finished stage in its place; at any time the old or the new one can be found."""
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(work, folder)
    for stale in (old, *folder.parent.glob(f"{folder.name}.partial-*")):
        shutil.rmtree(stale, ignore_errors=True)


def _write(work, name, mark, config, inputs, seed, seconds) -> None:
    # A process that died here before may have left its own.
    for own in (FILE, f"{FILE}.tmp"):
        (work / own).unlink(missing_ok=True)
    sizes = {
        str(path.relative_to(work)): path.stat().st_size
        for path in sorted(work.rglob("*"))
        if path.is_file()
    }
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    manifest = Manifest(
        name, mark, dict(config), dict(inputs), seed, versions(), now, seconds, sizes
    )
    text = json.dumps(asdict(manifest), indent=1, default=str)
    write_atomically(work / FILE, text.encode())


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _explain(error: OSError, folder: Path) -> JaxdiffError:
    free = shutil.disk_usage(folder.parent if folder.parent.exists() else ".").free
    full = error.errno in _FULL
    return JaxdiffError(
        f"{error.strerror or error}" + (f" ({free / 2**30:.1f} GiB free)" if full else ""),
        where=error.filename or folder,
        fix=("free some space or choose another output folder; " if full else "")
        + "complete work is kept, run again to go on",
    )
