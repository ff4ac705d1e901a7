"""Files of formats: named tensors in, checked all at once; settings; atomic writes."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxdiff.dictionaries.formats import _torch_zip
from jaxdiff.errors import JaxdiffError
from jaxdiff.manifest import write_atomically

# A folder of another kind, a language model's, has hundreds of tensors.
_SHOWN = 30


def read_tensors(path: Path) -> dict[str, Any]:
    """Reads the tensors of a safetensors, npz or torch file; of the last also plain values.

    Raises:
        JaxdiffError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise JaxdiffError("the file is missing", where=path)
    if path.suffix in (".pt", ".pth"):
        return _torch_zip.read(path)
    try:
        return _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except Exception as error:  # Damage raises many kinds, by library and place.
        raise JaxdiffError(
            f"the file cannot be read: {type(error).__name__}: {error}",
            where=path,
            fix="download or save it again",
        ) from None


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    # bfloat16 is known to NumPy once ml_dtypes is imported, as it is here.
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def take(
    found: Mapping[str, Any],
    shapes: Mapping[str, str],
    where: Path,
    *,
    optional: Mapping[str, str] | None = None,
    ignored: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Returns the tensors of a format in float32, after a look at all names and shapes.

    Args:
        found: What the file has.
        shapes: Axes of each tensor that must be there, by letters: "D L". A letter has one size.
        where: The file, for the error.
        optional: The same for tensors that may be missing.
        ignored: Names that may be there and are not used.

    Returns:
        The tensors that are there, by name.

    Raises:
        JaxdiffError: With everything that is missing, superfluous or of a wrong shape.
    """
    known = {**shapes, **(optional or {})}
    faults = [f"{name} is missing" for name in shapes if name not in found]
    faults += [
        f"{name} is not known" for name in found if name not in known and name not in ignored
    ]
    sizes: dict[str, tuple[int, str]] = {}
    for name, letters in known.items():
        if name not in found:
            continue
        axes, shape = letters.split(), np.shape(found[name])
        if len(axes) != len(shape):
            faults.append(f"{name} has shape {shape} instead of [{', '.join(axes)}]")
            continue
        for axis, size in zip(axes, shape, strict=True):
            first, owner = sizes.setdefault(axis, (size, name))
            if size != first:
                faults.append(f"{name} has {axis} = {size}, but {owner} has {axis} = {first}")
    if faults:
        rest = [f"... and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise JaxdiffError(
            "the tensors are not those of the format:\n  " + "\n  ".join(faults[:_SHOWN] + rest),
            where=where,
            fix="name the format that the file has, or get the file again",
        )
    return {name: as_float(found[name]) for name in known if name in found}


def as_float(value: Any) -> np.ndarray:
    """Returns a tensor in float32; 16-bit integers and raw pairs of bytes are bfloat16's bits.

    NumPy has no bfloat16 of its own, so tools store its bits under another name.
    """
    array = np.asarray(value)
    if array.ndim and (array.dtype in (np.int16, np.uint16) or array.dtype == np.dtype("V2")):
        array = array.view(ml_dtypes.bfloat16)
    return array.astype(np.float32)


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a JSON object, or a YAML mapping.

    Raises:
        JaxdiffError: If it is missing or something else.
    """
    import yaml

    try:
        text = path.read_text()
        found = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise JaxdiffError(
            f"the settings cannot be read: {type(error).__name__}: {error}", where=path
        ) from None
    return found


def setting(settings: Mapping[str, Any], name: str, where: Path) -> Any:
    """Returns a setting that must be there.

    Raises:
        JaxdiffError: If it is not.
    """
    if name not in settings:
        raise JaxdiffError(f"the settings have no {name}", where=where)
    return settings[name]


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes a JSON object, or a YAML mapping."""
    import yaml

    yaml_text = path.suffix == ".yaml"
    text = yaml.safe_dump(dict(settings)) if yaml_text else json.dumps(settings, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Writes a safetensors, npz or torch file."""
    import io

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt":
        data = _torch_zip.write(path, tensors)
    elif path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, **tensors)
        data = buffer.getvalue()
    else:
        from safetensors.numpy import save

        # It would write the memory of a transposed array as it lies.
        whole = {name: np.asarray(value, order="C") for name, value in tensors.items()}
        # Loaders of transformers and others ask for this.
        data = save(whole, metadata={"format": "pt"})
    write_atomically(path, data)
