"""Directories of models and adapters, local or from the hub, and what identifies one."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from jaxdiff.errors import JaxdiffError
from jaxdiff.manifest import hash_files

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
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

    patterns = [CONFIG, ADAPTER_CONFIG]
    patterns += [INDEX, "model*.safetensors", ADAPTER_WEIGHTS] if weights else []
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


class Base(NamedTuple):
    """The model that an adapter was trained on: directory or hub name, and revision."""

    name: str
    revision: str | None


def adapter_base(folder: Path) -> Base | None:
    """Returns the base that an adapter directory names; None if it is that of a model.

    Raises:
        JaxdiffError: If it is both, or names no base.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    both = [name for name in (WEIGHTS, INDEX) if (folder / name).is_file()]
    if both:
        raise JaxdiffError(
            f"this directory is a model ({both[0]}) and an adapter ({ADAPTER_CONFIG})",
            where=folder,
            fix="give each a directory of its own",
        )
    values = read_json(folder / ADAPTER_CONFIG)
    name = values.get("base_model_name_or_path")
    if not name:
        raise JaxdiffError(
            "the adapter does not say which model it was trained on",
            where=folder / ADAPTER_CONFIG,
            fix="set base_model_name_or_path, or attach it: attach(load(BASE), ADAPTER)",
        )
    base = Path(name).expanduser()
    if base.is_dir() and (base / ADAPTER_CONFIG).is_file():
        raise JaxdiffError(
            f"the base {name} is an adapter itself",
            where=folder / ADAPTER_CONFIG,
            fix="attach one after the other: attach(attach(load(BASE), FIRST), SECOND)",
        )
    return Base(name, values.get("revision"))


def adapter_file(folder: Path) -> Path:
    """Returns the file with the tensors of an adapter.

    Raises:
        JaxdiffError: If there is none.
    """
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise JaxdiffError(
            f"there is no {ADAPTER_WEIGHTS}",
            where=folder,
            fix="an adapter_model.bin is not read: open it with PEFT and save_pretrained it again",
        )
    return path


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
    one by the contents of its files, which are all read. An adapter is identified by its own files
    and its base.

    Raises:
        JaxdiffError: If the model is not there or incomplete.
    """
    folder = resolve(name_or_path, revision=revision)
    base = adapter_base(folder)
    if base is None:
        files = [folder / CONFIG, *weight_files(folder)]
    else:
        files = [folder / ADAPTER_CONFIG, adapter_file(folder)]
    if folder.parent.name == "snapshots" and _SNAPSHOT.fullmatch(folder.name):
        parts = [folder.name, *(f"{path.name} {os.path.getsize(path)}" for path in files)]
    else:
        parts = [hash_files(folder, path.name) for path in files]
    if base is not None:
        parts.append(fingerprint(base.name, revision=base.revision))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


_AGAIN = "download or save the model again"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
