"""A dictionary on disk: `dictionary.safetensors` and what is not an array in its metadata."""

import contextlib
import json
from collections.abc import Iterator
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


def save(
    d: Dictionary, folder: Path, *, normalization: Normalization | None = None, **record: Any
) -> None:
    """Writes `dictionary.safetensors` (arrays) and `dictionary.json` (settings and `record`).

    Args:
        d: The dictionary.
        folder: Folder to write to; made when missing.
        normalization: Maps raw activations to what the dictionary takes; None: it takes them raw.
        **record: More to keep in the JSON file, for people and later stages.
    """
    from safetensors.numpy import save as serialise

    folder.mkdir(parents=True, exist_ok=True)
    present = {name: getattr(d, name) for name in LEAVES}
    arrays = {name: np.asarray(leaf) for name, leaf in present.items() if leaf is not None}
    write_atomically(folder / f"{NAME}.safetensors", serialise(arrays))
    whole: dict[str, Any] = {"dictionary": {name: getattr(d, name) for name in STATIC}}
    if normalization is not None:
        whole["normalization"] = {
            "mean": np.asarray(normalization.mean).tolist(),
            "scale": np.asarray(normalization.scale).tolist(),
        }
    text = json.dumps(whole | record, indent=1, allow_nan=False)
    write_atomically(folder / f"{NAME}.json", text.encode())


def load(folder: str | Path) -> Dictionary:
    """Reads what `save` wrote; `training.read_result` has the normalisation too.

    Raises:
        JaxdiffError: If a file is missing or cannot be read, or an array is missing.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    with _explained(folder):
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


def load_normalization(folder: str | Path) -> Normalization:
    """Reads the normalisation that was saved beside a dictionary; the identity if none was.

    Raises:
        JaxdiffError: If the dictionary cannot be read.
    """
    folder = Path(folder)
    with _explained(folder):
        record = json.loads((folder / f"{NAME}.json").read_text()).get("normalization")
        if record is not None:
            return Normalization(**{n: np.asarray(v, np.float32) for n, v in record.items()})
    d = load(folder)
    return Normalization.identity((d.sources, d.b_dec.shape[1]))


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise JaxdiffError(
            f"the dictionary cannot be read: {type(error).__name__}: {error}",
            where=folder,
            fix="train it again, or name a folder that `jaxdiff train` wrote",
        ) from None
