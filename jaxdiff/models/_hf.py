"""Loading and saving Hugging Face model directories without torch."""

import copy
import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import _weights
from jaxdiff.models._files import (
    CONFIG,
    WEIGHTS,
    Base,
    adapter_base,
    read_json,
    resolve,
    weight_files,
)
from jaxdiff.models._lm import LM, abstract
from jaxdiff.models._mapping import sources
from jaxdiff.models._report import LoadReport
from jaxdiff.models._report import report as make_report
from jaxdiff.models._sharding import shardings
from jaxdiff.models.adapters import adapted_spec, adapter_report, attach
from jaxdiff.models.architecture import Architecture
from jaxdiff.models.registry import architecture
from jaxdiff.models.spec import ModelConfig

_log = logging.getLogger("jaxdiff.models")


def load(
    name_or_path: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    revision: str | None = None,
    stacked: bool = True,
) -> LM:
    """Loads a model from a directory or the Hugging Face hub.

    Of an adapter, the base that it names is loaded, and the adapter is merged into it. What became
    of each tensor is logged in one line; `load_report` says it without loading.

    Args:
        name_or_path: Directory with config.json and safetensors, or hub name; or those of an
            adapter (`attach`).
        dtype: Dtype of the parameters, and so of the activations: float32 or bfloat16.
        mesh: Mesh to split large matrices over; each device gets only its own part of a file. The
            default device holds all when None.
        revision: Branch, tag or commit of a hub model.
        stacked: Whether the parameters of all blocks are stacked, which compiles once for all of
            them, or `params["blocks"]` is a tuple with one tree a block, whose weights an unrolled
            program reads without copying them.

    Returns:
        The model.

    Raises:
        JaxdiffError: If it is not there, its architecture is not supported, or files are missing,
            truncated, or do not fit the config.
    """
    # The config comes first: an unsupported model must not cost the download of its weights.
    spec = load_spec(name_or_path, revision=revision)
    folder = resolve(name_or_path, revision=revision)
    if base := adapter_base(folder):
        lm = load(base.name, dtype=dtype, mesh=mesh, revision=base.revision, stacked=stacked)
        return attach(lm, folder)
    graphdef, shapes = abstract(spec)
    shapes = shapes if stacked else _one_tree_a_layer(shapes, spec.n_layers)
    params, report = _weights.read(
        weight_files(folder),
        architecture(spec.architecture, where=folder),
        spec,
        shapes,
        jnp.dtype(dtype),
        None if mesh is None else shardings(shapes, mesh),
    )
    _log.info("%s: %s", name_or_path, report)
    return LM(params=params, graphdef=graphdef, spec=spec)


def load_report(name_or_path: str | Path, *, revision: str | None = None) -> LoadReport:
    """Returns what `load` would do with every tensor of a model's files; reads no weights.

    Raises:
        JaxdiffError: If the model is not there, its architecture is not supported, or files are
            missing or truncated. What does not fit the config is in the report.
    """
    folder = resolve(name_or_path, revision=revision)
    if base := adapter_base(folder):
        its = load_report(base.name, revision=base.revision)
        own = adapter_report(_base_spec(folder, base), folder)
        return LoadReport(
            consumed={**its.consumed, **own.consumed},
            ignored={**its.ignored, **own.ignored},
            problems=(*its.problems, *own.problems),
        )
    spec = load_spec(name_or_path, revision=revision)
    family = architecture(spec.architecture, where=folder)
    places = sources(family, spec.n_heads, _weights.flatten(abstract(spec)[1]))
    with _weights.opened(weight_files(folder)) as tensors:
        return make_report(tensors, family, places)


def load_spec(name_or_path: str | Path, *, revision: str | None = None) -> ModelConfig:
    """Returns what a model is made of, without its weights.

    Raises:
        JaxdiffError: If there is no such model, or it needs what jaxdiff does not have.
    """
    folder = resolve(name_or_path, revision=revision, weights=False)
    if base := adapter_base(folder):
        # The names of an adapter's tensors, in the small file of its weights, say more.
        folder = resolve(name_or_path, revision=revision)
        return adapted_spec(_base_spec(folder, base), folder)
    return read_spec(folder)


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
    return _spec(family, values, where=folder / CONFIG)


def save(lm: LM, directory: str | Path, *, dtype: DTypeLike | None = None) -> None:
    """Writes config.json and model.safetensors, as transformers loads them.

    Args:
        lm: The model.
        directory: Directory to write to, made if need be; other files in it stay.
        dtype: Dtype of the tensors; that of the parameters when None.

    Raises:
        JaxdiffError: If the disk is full, the directory cannot be written, or the model has
            what a config.json of its architecture cannot say.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if lm.spec.lora:
        raise JaxdiffError(
            "the model has an adapter beside its weights, for which a model's files have no place",
            where=directory,
            fix="save it merged: save(merge(lm), DIRECTORY)",
        )
    family = architecture(lm.spec.architecture, where=directory)
    config = family.config(lm.spec) | {
        "architectures": [family.hf_class],
        "model_type": family.model_type,
    }
    _check_config(lm.spec, family, config, where=directory)
    wanted = None if dtype is None else jnp.dtype(dtype)
    tensors = _weights.tensors(family, lm.spec, lm.params, wanted)
    config |= {"dtype": str(next(iter(tensors.values())).dtype)}

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


def _base_spec(folder: Path, base: Base) -> ModelConfig:
    try:
        return load_spec(base.name, revision=base.revision)
    except JaxdiffError as error:
        raise JaxdiffError(
            f"the base of the adapter {folder} cannot be used: {error.what}",
            where=error.where,
            fix=f"{error.fix}; or attach the adapter to a model: attach(load(BASE), ADAPTER)",
        ) from None


def _one_tree_a_layer(shapes: dict[str, Any], layers: int) -> dict[str, Any]:
    block = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), shapes["blocks"]
    )
    return shapes | {"blocks": (block,) * layers}


def _spec(family: Architecture, values: dict[str, Any], *, where: Path) -> ModelConfig:
    """Makes a `ModelConfig` of the entries of a config.json."""
    try:
        return family.spec(_transformers_config(values))
    except JaxdiffError as error:
        raise JaxdiffError(error.what, where=where, fix=error.fix) from None
    except Exception as error:  # transformers' checks have no common base class
        raise JaxdiffError(
            f"this config is not valid: {error}", where=where, fix="correct it"
        ) from error


def _check_config(
    spec: ModelConfig, family: Architecture, config: dict[str, Any], *, where: str | Path
) -> None:
    """Refuses a model that its family's config.json cannot describe."""
    again = _spec(family, config, where=Path(where) / CONFIG)
    lost = [
        f"{field.name}={getattr(spec, field.name)!r}"
        for field in dataclasses.fields(ModelConfig)
        if getattr(spec, field.name) != getattr(again, field.name)
    ]
    if lost:
        raise JaxdiffError(
            f"a config.json of {family.model_type} cannot say {', '.join(lost)}",
            where=where,
            fix="choose the architecture that has what the model has",
        )


def _transformers_config(values: dict[str, Any]) -> Any:
    # transformers announces at import that torch is absent, which nobody here needs to know.
    quiet = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(quiet)
    os.environ[quiet] = "1"
    try:
        from transformers import AutoConfig
    finally:
        os.environ.pop(quiet) if before is None else os.environ.update({quiet: before})
    # from_dict changes what it is given.
    return type(AutoConfig.for_model(values["model_type"])).from_dict(copy.deepcopy(values))
