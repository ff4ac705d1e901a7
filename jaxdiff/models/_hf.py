"""Loading and saving Hugging Face model directories without torch."""

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import _weights
from jaxdiff.models._files import CONFIG, WEIGHTS, read_json, resolve, weight_files
from jaxdiff.models._lm import LM, abstract
from jaxdiff.models._sharding import shardings
from jaxdiff.models.registry import architecture
from jaxdiff.models.spec import ModelConfig


def load(
    name_or_path: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    revision: str | None = None,
) -> LM:
    """Loads a model from a directory or the Hugging Face hub.

    Args:
        name_or_path: Directory with config.json and safetensors, or hub name.
        dtype: Dtype of the parameters, and so of the activations: float32 or bfloat16.
        mesh: Mesh to split large matrices over; each device gets only its own part of a file. The
            default device holds all when None.
        revision: Branch, tag or commit of a hub model.

    Returns:
        The model.

    Raises:
        JaxdiffError: If it is not there, its architecture is not supported, or files are missing,
            truncated, or do not fit the config.
    """
    # The config comes first: an unsupported model must not cost the download of its weights.
    spec = load_spec(name_or_path, revision=revision)
    folder = resolve(name_or_path, revision=revision)
    graphdef, shapes = abstract(spec)
    params = _weights.read(
        weight_files(folder),
        architecture(spec.architecture, where=folder),
        shapes,
        jnp.dtype(dtype),
        None if mesh is None else shardings(shapes, mesh),
    )
    return LM(params=params, graphdef=graphdef, spec=spec)


def load_spec(name_or_path: str | Path, *, revision: str | None = None) -> ModelConfig:
    """Returns what a model is made of, without its weights.

    Raises:
        JaxdiffError: If there is no such model, or it needs what jaxdiff does not have.
    """
    return read_spec(resolve(name_or_path, revision=revision, weights=False))


def read_spec(folder: Path) -> ModelConfig:
    """Reads what a model is made of from its config.json.

    Raises:
        JaxdiffError: If there is no config.json, or it asks for what jaxdiff does not have.
    """
    values = read_json(folder / CONFIG)
    family = architecture(values.get("model_type"), where=folder / CONFIG)
    if values.get("quantization_config"):
        raise JaxdiffError(
            "quantised weights are not supported",
            where=folder / CONFIG,
            fix="use the float32 or bfloat16 version of the model",
        )
    try:
        return family.spec(_auto_config(folder))
    except JaxdiffError as error:
        raise JaxdiffError(error.what, where=folder / CONFIG, fix=error.fix) from None
    except Exception as error:  # transformers' checks have no common base class
        raise JaxdiffError(
            f"this config is not valid: {error}", where=folder / CONFIG, fix="correct it"
        ) from error


def save(lm: LM, directory: str | Path, *, dtype: DTypeLike | None = None) -> None:
    """Writes config.json and model.safetensors, as transformers loads them.

    Args:
        lm: The model.
        directory: Directory to write to, made if need be; other files in it stay.
        dtype: Dtype of the tensors; that of the parameters when None.

    Raises:
        JaxdiffError: If the disk is full or the directory cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    family = architecture(lm.spec.architecture, where=directory)
    flat = _weights.flatten(lm.params)
    tensors: dict[str, np.ndarray] = {}
    for path, keys in _weights.names(family, flat).items():
        leaf = np.asarray(flat[path])
        leaf = np.ascontiguousarray(leaf if dtype is None else leaf.astype(jnp.dtype(dtype)))
        tensors |= dict(zip(keys, leaf if _weights.stacked(path) else [leaf], strict=True))
    config = family.config(lm.spec) | {
        "architectures": [family.hf_class],
        "model_type": family.model_type,
        "dtype": str(next(iter(tensors.values())).dtype),
    }

    directory = Path(directory)
    part = directory / f"{WEIGHTS}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(dict(sorted(tensors.items())), part, metadata={"format": "pt"})
        os.replace(part, directory / WEIGHTS)
        (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise JaxdiffError(
            f"the model cannot be written: {error}",
            where=directory,
            fix="free space or choose another directory; what was there before is still there",
        ) from error


def _auto_config(folder: Path) -> Any:
    # transformers announces at import that torch is absent, which nobody here needs to know.
    quiet = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(quiet)
    os.environ[quiet] = "1"
    try:
        from transformers import AutoConfig
    finally:
        os.environ.pop(quiet) if before is None else os.environ.update({quiet: before})
    return AutoConfig.from_pretrained(folder)
