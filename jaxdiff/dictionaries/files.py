"""A dictionary on disk: `dictionary.safetensors` and what is not an array in its metadata."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdiff.dictionaries.dictionary import LEAVES, STATIC, Dictionary
from jaxdiff.dictionaries.normalization import Normalization
from jaxdiff.errors import JaxdiffError
from jaxdiff.manifest import write_atomically

NAME = "dictionary"
_SIDES = ("reads", "writes")


def save(d: Dictionary, folder: Path, **record: Any) -> None:
    """Writes `dictionary.safetensors` (arrays) and `dictionary.json` (settings and `record`).

    Args:
        d: The dictionary.
        folder: Folder to write to; made when missing.
        **record: More to keep in the JSON file, for people and later stages.
    """
    from safetensors.numpy import save as serialise

    folder.mkdir(parents=True, exist_ok=True)
    present = {name: getattr(d, name) for name in LEAVES}
    arrays = {name: np.asarray(leaf) for name, leaf in present.items() if leaf is not None}
    write_atomically(folder / f"{NAME}.safetensors", serialise(arrays))
    settings = {name: getattr(d, name) for name in STATIC}
    text = json.dumps({"dictionary": settings, **record}, indent=1, allow_nan=False)
    write_atomically(folder / f"{NAME}.json", text.encode())


def load(folder: str | Path) -> Dictionary:
    """Reads what `save` wrote; `training.read_result` has the normalisation too.

    Raises:
        JaxdiffError: If a file is missing or cannot be read, or an array is missing.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    try:
        settings = json.loads((folder / f"{NAME}.json").read_text())["dictionary"]
        arrays = load_file(folder / f"{NAME}.safetensors")
        # A skip, and sources of its own, are what most dictionaries have not.
        leaves = {name: jnp.asarray(arrays[name]) for name in LEAVES if name != "W_skip"}
        skip = jnp.asarray(arrays["W_skip"]) if "W_skip" in arrays else None
        static: dict[str, Any] = {name: settings[name] for name in STATIC if name not in _SIDES}
        for name in _SIDES:
            found = settings.get(name)
            static[name] = None if found is None else tuple(found)
        return Dictionary(**leaves, W_skip=skip, **static)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise JaxdiffError(
            f"the dictionary cannot be read: {type(error).__name__}: {error}",
            where=folder,
            fix="train it again, or name a folder that `jaxdiff train` wrote",
        ) from None


def load_normalization(folder: str | Path) -> Normalization:
    """Reads the normalisation that was saved as `record["normalization"]`; the identity if none.

    Raises:
        JaxdiffError: If the dictionary cannot be read.
    """
    d = load(folder)
    record = json.loads((Path(folder) / f"{NAME}.json").read_text()).get("normalization")
    if record is None:
        return Normalization.identity((d.sources, d.b_dec.shape[1]))
    return Normalization(**{name: np.asarray(v, np.float32) for name, v in record.items()})
