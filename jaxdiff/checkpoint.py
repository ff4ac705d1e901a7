"""Checkpoints of long work: arrays and a JSON record, committed together. Alone imports Orbax."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import barrier
from jaxdiff.progress import log

_SIZES = "sizes.json"
# What TensorStore begins a ValueError with that says nothing about the files.
_ELSEWHERE = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")


class Writer:
    """Writes checkpoints of one run while the run goes on.

    A checkpoint becomes visible in one rename, after all of it is on disk; those that need not
    stay are removed after that. Every process of a run must make the same calls, with the same
    folder on storage that they share. Close it, or the last checkpoint is lost.

    Args:
        folder: Folder of all checkpoints of this run.
        keep_last: Newest checkpoints that stay [checkpoints].
        keep_every: Those of steps that are multiples of this stay too [steps]; None: no others.
    """

    def __init__(self, folder: Path, *, keep_last: int = 2, keep_every: int | None = None):
        self._folder = folder
        self._keep = keep_last, keep_every
        self._under_way: tuple[int, Any] | None = None

    def save(self, step: int, state: PyTree, record: dict[str, Any]) -> None:
        """Copies the state and starts writing it, once the last checkpoint is complete.

        Args:
            step: Steps done; names the checkpoint and orders it [steps].
            state: Arrays, on any mesh; they may be donated when this returns.
            record: What else is needed to go on; must survive JSON.

        Raises:
            JaxdiffError: If this one or the last one cannot be written.
        """
        from orbax.checkpoint import v1 as ocp

        self.wait()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = str(_path(self._folder, step))
        with self._explained(step):
            response = ocp.save_async(
                path, _named(state), custom_metadata={"record": record}, overwrite=True
            )
        self._under_way = step, response

    def wait(self) -> None:
        """Returns when the checkpoint that is being written, if any, is complete.

        Raises:
            JaxdiffError: If it cannot be written.
        """
        if self._under_way is None:
            return
        (step, response), self._under_way = self._under_way, None
        with self._explained(step):
            response.result()
        if jax.process_index() == 0:
            _write_sizes(_path(self._folder, step))
            last, every = self._keep
            for old in steps(self._folder)[:-last]:
                if not _stays(old, every):
                    _remove(_path(self._folder, old))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self.wait()
        except JaxdiffError as failed:
            if error is None:
                raise
            log(str(failed))  # The error that ended the run is the one to raise.

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            free = shutil.disk_usage(self._folder).free
            raise JaxdiffError(
                f"the checkpoint cannot be written: {error} ({free / 2**30:.1f} GiB free)",
                where=_path(self._folder, step),
                fix="free some space and run again; earlier checkpoints are kept",
            ) from error


def restore(
    folder: Path, like: Callable[[dict[str, Any]], PyTree], step: int | None = None
) -> tuple[int, PyTree, dict[str, Any]] | None:
    """Reads the newest checkpoint that is whole.

    Args:
        folder: Folder given to `Writer`.
        like: Makes from a record a tree of the structure that was saved, of arrays or
            `jax.ShapeDtypeStruct`; its shardings say where the arrays go, so that another mesh
            may go on. What it raises is passed on.
        step: Steps done at the one to read [steps]; when None, it is the newest, and what is left
            of one that was not finished is removed.

    Returns:
        Step, state and record; None if there is no checkpoint.

    Raises:
        JaxdiffError: If there are checkpoints and all are damaged, or one holds other arrays.
        Exception: What else goes wrong while reading, for instance OSError without permission.
    """
    if step is None:
        if jax.process_index() == 0:
            _clean(folder)
        barrier(f"clean {folder}")  # All look for checkpoints in the same files.
    faults = []
    for found in reversed(steps(folder)):
        if step not in (None, found):
            continue
        path = _path(folder, found)
        try:
            state, record = _read(path, like)
        except _Damaged as error:
            faults.append(f"{path.name}: {error}")
            log(f"checkpoint {path} is damaged and skipped ({error})")
            continue
        return found, state, record
    if faults:
        raise JaxdiffError(
            "no checkpoint can be read: " + "; ".join(faults),
            where=folder,
            fix="delete the folder to start over",
        )
    return None


def remove(folder: Path, keep_every: int | None = None) -> None:
    """Removes the checkpoints of a run that is complete, but for multiples of `keep_every`."""
    if jax.process_index() != 0 or not folder.exists():
        return
    for step in steps(folder):
        if not _stays(step, keep_every):
            _remove(_path(folder, step))
    if not steps(folder):
        shutil.rmtree(folder)


class _Damaged(Exception):
    """Files of a checkpoint are missing or not what was written."""


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not _is_damage(error):
            raise
        reason = next(iter(str(error).splitlines()), "")
        raise _Damaged(f"{type(error).__name__}: {reason}") from error


def _is_damage(error: BaseException) -> bool:
    """Tells what missing and corrupt files raise from the faults of a disk, a program, a user."""
    if type(error) is Exception and error.__cause__ is not None:
        error = error.__cause__  # Orbax wraps what TensorStore says of a chunk.
    if isinstance(error, ValueError):
        return not str(error).startswith(_ELSEWHERE)
    return isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)


def _read(path: Path, like: Callable[[dict[str, Any]], PyTree]) -> tuple[PyTree, dict[str, Any]]:
    from orbax.checkpoint import v1 as ocp

    with _reading():
        _check_sizes(path)
        found: Any = ocp.metadata(str(path))
        metadata = found.custom_metadata
        if not isinstance(metadata, dict) or not isinstance(metadata.get("record"), dict):
            raise ValueError("its record is missing")
        if not isinstance(found.metadata, dict):
            raise ValueError("its arrays are not described")
    tree = like(metadata["record"])
    abstract = {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
        for name, a in _named(tree).items()
    }
    _check_arrays(path, found.metadata, abstract)
    with _reading():
        arrays = ocp.load(str(path), abstract)
    leaves = [arrays[name] for name in abstract]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves), metadata["record"]


def _check_arrays(path: Path, found: Any, wanted: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Refuses what Orbax would call corrupt, or cast without a word."""
    stored = {name: (tuple(a.shape), a.dtype) for name, a in found.items()}
    asked = {name: (a.shape, a.dtype) for name, a in wanted.items()}
    other = [name for name in {**asked, **stored} if stored.get(name) != asked.get(name)]
    if other:
        raise JaxdiffError(
            f"the checkpoint has other arrays than these settings make, such as {other[0]}: "
            f"{_shown(stored.get(other[0]))}, not {_shown(asked.get(other[0]))}",
            where=path,
            fix="go on with the version of jaxdiff that wrote it, or delete the folder",
        )


def _shown(array: tuple[tuple[int, ...], Any] | None) -> str:
    return "none" if array is None else f"{array[1]}{list(array[0])}"


def _named(tree: PyTree) -> dict[str, Any]:
    """Flattens to a plain dict, so that a file never depends on how a class is registered."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in pairs}


def _path(folder: Path, step: int) -> Path:
    return folder.absolute() / f"{step:09d}"


def steps(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, in order [steps]."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit() and p.is_dir())


def _stays(step: int, keep_every: int | None) -> bool:
    return keep_every is not None and step % keep_every == 0


def _files(path: Path) -> dict[str, int]:
    return {
        str(p.relative_to(path)): p.stat().st_size
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name != _SIZES
    }


def _write_sizes(path: Path) -> None:
    # Written after the commit: a kill in between costs the check, not the checkpoint.
    temporary = path / (_SIZES + ".tmp")
    temporary.write_text(json.dumps(_files(path)))
    os.replace(temporary, path / _SIZES)


def _check_sizes(path: Path) -> None:
    if (path / _SIZES).exists():
        expected, found = json.loads((path / _SIZES).read_text()), _files(path)
        wrong = [name for name, size in expected.items() if found.get(name) != size]
        if wrong:
            raise ValueError(f"{wrong[0]} is missing or has another size than when it was written")


def _remove(path: Path) -> None:
    # Renamed first: a kill halfway must not leave half a checkpoint under its name.
    doomed = path.with_name(path.name + ".removed")
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def _clean(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.is_dir() and not path.name.isdigit():
            shutil.rmtree(path)
