"""Model directories, local or from the Hugging Face hub, and what identifies one."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from jaxdiff.errors import JaxdiffError
from jaxdiff.manifest import hash_files

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
_SNAPSHOT = re.compile(r"[0-9a-f]{40}")


def resolve(name_or_path: str | Path, *, revision: str | None = None, weights: bool = True) -> Path:
    """Returns a local directory with a model's files, downloaded to the hub's cache if need be.

    Args:
        name_or_path: Directory, or hub name like `google/gemma-2-2b`.
        revision: Branch, tag or commit of a hub model.
        weights: Whether the weights are wanted, or only the config.

    Raises:
        JaxdiffError: If there is no such directory and the hub does not give it either.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name_or_path)):
        raise JaxdiffError(
            "this is neither a directory nor a hub name", where=name_or_path, fix="check the path"
        )
    import huggingface_hub

    patterns = [CONFIG, INDEX, "model*.safetensors"] if weights else [CONFIG]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(name_or_path), revision=revision, allow_patterns=patterns
            )
        )
    except (OSError, ValueError) as error:
        raise JaxdiffError(
            f"there is no such directory, and the hub gives no such model: {_first_line(error)}",
            where=name_or_path,
            fix="check the name, the network and HF_HUB_OFFLINE; a gated model needs "
            "`hf auth login` and its licence accepted",
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a model; those of the index where there is one.

    Raises:
        JaxdiffError: If there is none, one that the index names is missing, or the index is bad.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / WEIGHTS).is_file():
            raise JaxdiffError(
                f"there are no weights: neither {WEIGHTS} nor {INDEX}",
                where=folder,
                fix="weights in another format must be saved as safetensors first",
            )
        return [folder / WEIGHTS]
    try:
        files = sorted({folder / name for name in read_json(index)["weight_map"].values()})
    except (KeyError, TypeError, AttributeError):
        raise JaxdiffError("the index has no weight_map", where=index, fix=_AGAIN) from None
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise JaxdiffError(
            f"{len(missing)} of {len(files)} weight files are missing: {', '.join(missing)}",
            where=folder,
            fix=_AGAIN,
        )
    return files


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        JaxdiffError: If the file is missing or is no JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise JaxdiffError(
            f"there is no {path.name}", where=path.parent, fix="give the directory of a model"
        ) from None
    except ValueError as error:
        raise JaxdiffError(f"this is not JSON: {error}", where=path, fix=_AGAIN) from None
    if not isinstance(value, dict):
        raise JaxdiffError("this is not a JSON object", where=path, fix=_AGAIN)
    return value


def fingerprint(name_or_path: str | Path, *, revision: str | None = None) -> str:
    """Returns a hash of a model's config and weights; 16 hex digits.

    A hub model is identified by its resolved commit with the names and sizes of its files; a local
    one by the contents of its files, which are all read.

    Raises:
        JaxdiffError: If the model is not there or incomplete.
    """
    folder = resolve(name_or_path, revision=revision)
    files = [folder / CONFIG, *weight_files(folder)]
    if folder.parent.name == "snapshots" and _SNAPSHOT.fullmatch(folder.name):
        parts = [folder.name, *(f"{path.name} {os.path.getsize(path)}" for path in files)]
    else:
        parts = [hash_files(folder, path.name) for path in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


_AGAIN = "download or save the model again"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
