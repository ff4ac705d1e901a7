"""What the files of an adapter change in a model."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import _adapter_names as names
from jaxdiff.models._adapter_config import AdapterConfig, read_config
from jaxdiff.models._files import adapter_file
from jaxdiff.models._low_rank import LowRank
from jaxdiff.models._mapping import Index, Source, sources
from jaxdiff.models._report import LoadReport
from jaxdiff.models._weights import opened
from jaxdiff.models.registry import architecture
from jaxdiff.models.spec import ModelConfig


class Changes(NamedTuple):
    """What an adapter changes, by path of the parameter, then by layer and expert.

    Attributes:
        updates: What is added to matrices, scale included.
        replaced: New values of whole matrices and vectors.
    """

    updates: dict[str, dict[Index, LowRank]]
    replaced: dict[str, dict[Index, np.ndarray]]

    @property
    def adds_nothing(self) -> bool:
        """Whether all updates are zero."""
        parts = [part for parts in self.updates.values() for part in parts.values()]
        return not any(part.a.any() and part.b.any() for part in parts)


def read_changes(
    spec: ModelConfig, flat: Mapping[str, Any], folder: Path
) -> tuple[Changes, LoadReport]:
    """Reads an adapter.

    Args:
        spec: The base.
        flat: The base's parameters by path, stacked or one tree a layer.
        folder: Directory of the adapter.

    Returns:
        What it changes, and what became of each tensor.

    Raises:
        JaxdiffError: If it is not there or damaged, is of a kind that is not supported, does not
            match the model, or has numbers that are not finite.
    """
    changes = Changes(defaultdict(dict), defaultdict(dict))
    config = read_config(folder)
    with opened([adapter_file(folder)]) as tensors:
        found = _find(spec, flat, tensors, config, folder)
        check_names(found.report, folder)
        for update in found.updates:
            a, b = (tensors[name][:].astype(np.float32) for name in (update.a, update.b))
            a, b = (b.T, a.T) if update.embedding else (a, b)
            for path, index, source in update.places:
                rows = _outputs(source, b) * np.float32(update.scale)
                changes.updates[path][index] = LowRank(a, rows)
        for name, places in found.replaced.items():
            tensor = tensors[name][:]
            for path, index, source in places:
                changes.replaced[path][index] = _outputs(
                    source, tensor.T if source.transposed else tensor
                )
    _check_finite(changes, folder)
    return changes, found.report


def read_report(spec: ModelConfig, flat: Mapping[str, Any], folder: Path) -> LoadReport:
    """Returns what `read_changes` would do with every tensor; reads no weights."""
    config = read_config(folder)
    with opened([adapter_file(folder)]) as tensors:
        return _find(spec, flat, tensors, config, folder).report


def _find(
    spec: ModelConfig,
    flat: Mapping[str, Any],
    tensors: Mapping[str, Any],
    config: AdapterConfig,
    folder: Path,
) -> names.Found:
    family = architecture(spec.architecture, where=folder)
    # An adapter may change the unembedding alone, also where it is the embedding.
    shapes = {"unembedding": flat["embedding"]} | dict(flat)
    shapes = {path: leaf for path, leaf in shapes.items() if ".lora_" not in path}
    return names.find(tensors, config, family, sources(family, spec.n_heads, shapes))


def _outputs(source: Source, tensor: np.ndarray) -> np.ndarray:
    """Returns a parameter's rows of a tensor with those of all parameters in it."""
    runs = tensor.reshape(-1, source.stride, *tensor.shape[1:])
    return runs[:, source.start : source.start + source.size].reshape(-1, *tensor.shape[1:])


def check_names(report: LoadReport, folder: Path) -> None:
    """Refuses an adapter with tensors that do not match, or with none."""
    if report.problems or not report.consumed:
        lines = report.problems or ("there are no tensors",)
        raise JaxdiffError(
            f"the adapter does not match the model in {len(lines)} ways:\n  " + "\n  ".join(lines),
            where=folder,
            fix="attach it to the model that it was trained on, which base_model_name_or_path in "
            "its adapter_config.json names",
        )


def _check_finite(changes: Changes, folder: Path) -> None:
    broken = sorted(
        path
        for parts in changes
        for path, values in parts.items()
        if not all(
            np.isfinite(leaf.astype(np.float32)).all()
            for leaf in jax.tree.leaves(list(values.values()))
        )
    )
    if broken:
        raise JaxdiffError(
            f"the adapter has NaN or infinite numbers for {', '.join(broken)}",
            where=folder,
            fix="save the adapter again from a step before its training diverged",
        )
