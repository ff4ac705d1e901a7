"""Loading and saving Hugging Face model directories without torch."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import _weights
from jaxdiff.models._config_json import CHANGES, changes_of, check_config, read_spec
from jaxdiff.models._files import (
    CONFIG,
    INDEX,
    WEIGHTS,
    Base,
    adapter_base,
    resolve,
    weight_files,
)
from jaxdiff.models._lm import LM, abstract
from jaxdiff.models._mapping import sources
from jaxdiff.models._report import LoadReport
from jaxdiff.models._report import report as make_report
from jaxdiff.models._sharding import shardings
from jaxdiff.models.adapters import adapted, adapted_spec, adapter_report, attach, unties
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
        return attach(lm, name_or_path, revision=revision)
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
    report = replace(report, changes=changes_of(folder))
    _log.info("%s: %s", name_or_path, report)
    return LM(params=params, graphdef=graphdef, spec=spec, changes=report.changes)


def load_report(name_or_path: str | Path, *, revision: str | None = None) -> LoadReport:
    """Returns what `load` would do with every tensor of a model's files; reads no weights.

    Raises:
        JaxdiffError: If the model is not there, its architecture is not supported, or files are
            missing or truncated. What does not fit the config is in the report.
    """
    folder = resolve(name_or_path, revision=revision)
    if base := adapter_base(folder):
        its = load_report(base.name, revision=base.revision)
        spec = _base_spec(folder, base)
        own = adapter_report(spec, folder)
        untied = ("untie",) if unties(spec, own) else ()
        return LoadReport(
            consumed={**its.consumed, **own.consumed},
            ignored={**its.ignored, **own.ignored},
            problems=(*its.problems, *own.problems),
            changes=(*its.changes, *untied, adapted("merge", name_or_path, revision)),
        )
    spec = load_spec(name_or_path, revision=revision)
    family = architecture(spec.architecture, where=folder)
    places = sources(family, spec.n_heads, _weights.flatten(abstract(spec)[1]))
    with _weights.opened(weight_files(folder)) as tensors:
        found = make_report(tensors, family, places)
    return replace(found, changes=changes_of(folder))


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


def save(lm: LM, directory: str | Path, *, dtype: DTypeLike | None = None) -> None:
    """Writes config.json and model.safetensors, as transformers loads them.

    What was done to the weights (`LM.changes`) is in config.json, as `jaxdiff_changes`.

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
    if lm.edits:
        raise JaxdiffError(
            "the model carries edits, for which a model's files have no place",
            where=directory,
            fix="save them by edits.save, and the model without: replace(lm, edits=())",
        )
    family = architecture(lm.spec.architecture, where=directory)
    config = family.config(lm.spec) | {
        "architectures": [family.hf_class],
        "model_type": family.model_type,
    }
    check_config(lm.spec, family, config, where=directory)
    wanted = None if dtype is None else jnp.dtype(dtype)
    tensors = _weights.tensors(family, lm.spec, lm.params, wanted)
    config |= {"dtype": str(next(iter(tensors.values())).dtype)}
    config |= {CHANGES: lm.changes} if lm.changes else {}

    directory = Path(directory)
    part = directory / f"{WEIGHTS}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(dict(sorted(tensors.items())), part, metadata={"format": "pt"})
        os.replace(part, directory / WEIGHTS)
        # An index of several files that were there before would be read instead.
        (directory / INDEX).unlink(missing_ok=True)
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
