"""Checkpoints of long work: arrays and a JSON record, committed together. Alone imports Orbax."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import barrier
from jaxdiff.progress import log

_SIZES = "sizes.json"


def save(folder: Path, step: int, state: PyTree, record: dict[str, Any], *, keep: int = 2) -> None:
    """Writes a checkpoint, then removes all but the newest ones.

    A checkpoint becomes visible in one rename, after all of it is on disk. Every process of a run
    must call this, with the same folder on storage that they share.

    Args:
        folder: Folder of all checkpoints of this run.
        step: Steps done; names the checkpoint and orders it [steps].
        state: Arrays, on any mesh.
        record: What else is needed to go on; must survive JSON.
        keep: Checkpoints that stay [checkpoints].

    Raises:
        JaxdiffError: If it cannot be written.
    """
    from orbax.checkpoint import v1 as ocp

    path = folder.absolute() / f"{step:09d}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        ocp.save(str(path), _named(state), custom_metadata={"record": record}, overwrite=True)
    except (OSError, ValueError) as error:
        free = shutil.disk_usage(folder).free
        raise JaxdiffError(
            f"the checkpoint cannot be written: {error} ({free / 2**30:.1f} GiB free)",
            where=path,
            fix="free some space and run again; earlier checkpoints are kept",
        ) from error
    if jax.process_index() == 0:
        _write_sizes(path)
        for old in _steps(folder)[:-keep]:
            _remove(folder / f"{old:09d}")


def restore(folder: Path, like: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
    """Reads the newest checkpoint that is whole.

    Args:
        folder: Folder given to `save`.
        like: Tree of the same structure, of arrays or `jax.ShapeDtypeStruct`; its shardings say
            where the arrays go, so that another mesh may go on.

    Returns:
        Step, state and record; None if there is no checkpoint.

    Raises:
        JaxdiffError: If there are checkpoints and none can be read.
    """
    if jax.process_index() == 0:
        _clean(folder)
    barrier(f"clean {folder}")  # All look for checkpoints in the same files.
    faults = []
    for step in reversed(_steps(folder)):
        path = folder.absolute() / f"{step:09d}"
        try:
            state, record = _read(path, like)
        except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files.
            reason = str(error).splitlines()[0] if str(error) else ""
            faults.append(f"{path.name}: {type(error).__name__}: {reason}")
            log(f"checkpoint {path} is damaged and skipped ({faults[-1]})")
            continue
        return step, state, record
    if faults:
        raise JaxdiffError(
            "no checkpoint can be read: " + "; ".join(faults),
            where=folder,
            fix="delete the folder to start over",
        )
    return None


def remove(folder: Path) -> None:
    """Removes all checkpoints of a run that is complete."""
    if jax.process_index() == 0 and folder.exists():
        shutil.rmtree(folder)


def _read(path: Path, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    from orbax.checkpoint import v1 as ocp

    _check_sizes(path)
    abstract = {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
        for name, a in _named(like).items()
    }
    arrays = ocp.load(str(path), abstract)
    metadata: Any = ocp.metadata(str(path)).custom_metadata
    if not isinstance(metadata, dict) or not isinstance(metadata.get("record"), dict):
        raise ValueError("its record is missing")
    leaves = [arrays[name] for name in abstract]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), metadata["record"]


def _named(tree: PyTree) -> dict[str, Any]:
    """Flattens to a plain dict, so that a file never depends on how a class is registered."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in pairs}


def _steps(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit() and p.is_dir())


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
