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


def save(d: Dictionary, folder: Path, **record: Any) -> None:
    """Writes `dictionary.safetensors` (arrays) and `dictionary.json` (settings and `record`).

    Args:
        d: The dictionary.
        folder: Folder to write to; made when missing.
        **record: More to keep in the JSON file, for people and later stages.
    """
    from safetensors.numpy import save as serialise

    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(getattr(d, name)) for name in LEAVES}
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
        leaves = {name: jnp.asarray(arrays[name]) for name in LEAVES}
        return Dictionary(**leaves, **{name: settings[name] for name in STATIC})
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
        return Normalization.identity((d.b_dec.shape[0], d.b_dec.shape[1]))
    return Normalization(**{name: np.asarray(v, np.float32) for name, v in record.items()})
