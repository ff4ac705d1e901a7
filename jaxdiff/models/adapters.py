"""Low-rank adapters (LoRA, arXiv:2106.09685) in PEFT's format, on the models that they change.

    base = load("meta-llama/Llama-3.2-1B")
    ft = attach(base, "path/to/adapter")                  # in the weights
    ft = attach(base, "path/to/adapter", merge=False)     # beside them
    ft = load("path/to/adapter")                          # on the base that it names

Weights that an adapter leaves alone are shared with the base, not copied.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._adapter_read import Changes, check_names, read_changes, read_report
from jaxdiff.models._files import resolve
from jaxdiff.models._lm import LM, abstract, changed, untie
from jaxdiff.models._low_rank import LowRank, beside, change, join
from jaxdiff.models._report import LoadReport
from jaxdiff.models._weights import flatten, unflatten
from jaxdiff.models.spec import ModelConfig

_log = logging.getLogger("jaxdiff.models")


def attach(
    lm: LM, name_or_path: str | Path, *, merge: bool = True, revision: str | None = None
) -> LM:
    """Returns a model with an adapter: `W + scale * B A` for each matrix that it updates.

    The scale is `alpha / rank`, or `alpha / sqrt(rank)` with rank-stabilised LoRA
    (arXiv:2312.03732). Every tensor must find its place: an adapter that misses would make a
    comparison of the base with itself. What it replaces as a whole (`modules_to_save`, biases) is
    replaced. Where it changes one of a tied embedding and unembedding, the other stays.

    Args:
        lm: The base.
        name_or_path: Directory with adapter_config.json and adapter_model.safetensors, or hub name.
        merge: Whether the updates are added to the weights, in float32, then rounded to their
            dtype. Otherwise they are kept beside them as `lora_a` `[R, in]` and `lora_b`
            `[out, R]`, scale included, zero where a layer has none or one of smaller rank.
        revision: Branch, tag or commit of a hub adapter.

    Returns:
        The changed model, whose `changes` name the adapter; `lm` stays as it is.

    Raises:
        JaxdiffError: If the adapter is not there or damaged, is of a kind that is not supported,
            does not match the model, changes nothing, or cannot be kept apart. The message lists
            all that is wrong.
    """
    folder = resolve(name_or_path, revision=revision)
    changes, report = read_changes(lm.spec, flatten(lm.params), folder)
    _log.info("%s: %s", name_or_path, report)
    lm = untie(lm) if unties(lm.spec, report) else lm
    lm = (_merge if merge else _keep)(lm, changes, folder)
    return changed(lm, adapted("merge" if merge else "attach", name_or_path, revision))


def merge(lm: LM) -> LM:
    """Returns a model with the updates beside its weights added to them, in float32."""
    if not lm.spec.lora:
        return lm
    flat = flatten(lm.params)
    updates = {
        path: LowRank(*map(flat.pop, _factors(path)))
        for path in list(flat)
        if _factors(path)[0] in flat
    }
    new, _ = change({path: flat[path] for path in updates}, {}, updates)
    return changed(_rebuilt(lm, flat | new, replace(lm.spec, lora=())), "merge")


def adapted(how: str, name_or_path: str | Path, revision: str | None) -> str:
    """Returns what the record of a model's changes says of an adapter."""
    return f"{how} {name_or_path}" + (f"@{revision}" if revision else "")


def adapter_report(spec: ModelConfig, folder: Path) -> LoadReport:
    """Returns what `attach` would do with every tensor of an adapter; reads no weights."""
    return read_report(spec, flatten(abstract(spec)[1]), folder)


def adapted_spec(spec: ModelConfig, folder: Path) -> ModelConfig:
    """Returns what a model is made of after an adapter was merged into it.

    Raises:
        JaxdiffError: If the adapter does not match the model.
    """
    report = adapter_report(spec, folder)
    check_names(report, folder)
    return replace(spec, tied=False) if unties(spec, report) else spec


def unties(spec: ModelConfig, report: LoadReport) -> bool:
    """Returns whether an adapter changes one of a tied embedding and unembedding."""
    ends = {"embedding", "unembedding"}
    return spec.tied and any(ends.intersection(paths) for paths in report.consumed.values())


def _merge(lm: LM, changes: Changes, folder: Path) -> LM:
    flat = flatten(lm.params)
    updates = {path: join(parts, flat[path].shape) for path, parts in changes.updates.items()}
    touched = {path: flat[path] for path in {**changes.replaced, **updates}}
    new, differs = change(touched, changes.replaced, updates)
    _check_changed(changes, differs, touched, folder)
    return _rebuilt(lm, flat | new, lm.spec)


def _keep(lm: LM, changes: Changes, folder: Path) -> LM:
    flat = flatten(lm.params)
    ranks: dict[str, int] = defaultdict(int)
    for path, parts in changes.updates.items():
        ranks[_stem(path)] = max(ranks[_stem(path)], *(len(part.a) for part in parts.values()))
    spec = replace(lm.spec, lora=tuple(sorted(ranks.items())))
    _check_apart(lm.spec, spec, folder)
    new, differs = change({path: flat[path] for path in changes.replaced}, changes.replaced, {})
    if changes.adds_nothing:
        _check_changed(changes, differs, new, folder)
    flat |= new
    for path, weight in list(flat.items()):
        if _stem(path) in ranks and path.endswith(".weight"):
            parts = changes.updates.get(path, {})
            update = beside(weight, join(parts, weight.shape, ranks[_stem(path)]))
            flat |= dict(zip(_factors(path), update, strict=True))
    return _rebuilt(lm, flat, spec)


def _stem(path: str) -> str:
    """Returns what `ModelConfig.lora` calls the module of a parameter."""
    return re.sub(r"^blocks\.(\d+\.)?", "", path).rpartition(".")[0] or path


def _factors(path: str) -> tuple[str, str]:
    stem = path.removesuffix(".weight")
    return f"{stem}.lora_a", f"{stem}.lora_b"


def _rebuilt(lm: LM, flat: Mapping[str, Any], spec: ModelConfig) -> LM:
    return replace(lm, params=unflatten(flat), graphdef=abstract(spec)[0], spec=spec)


def _check_apart(old: ModelConfig, spec: ModelConfig, folder: Path) -> None:
    """Refuses what cannot be kept beside the weights."""
    if old.lora:
        raise JaxdiffError(
            f"the model has an adapter beside its weights already: {old.lora}",
            where=folder,
            fix="merge it first: attach(merge(lm), ADAPTER, merge=False)",
        )
    shapes = flatten(abstract(spec)[1])
    lost = [stem for stem, _ in spec.lora if f"blocks.{stem}.lora_a" not in shapes]
    if lost:
        raise JaxdiffError(
            f"updates of {', '.join(lost)} cannot be kept apart, only those of attention and MLP",
            where=folder,
            fix="add them to the weights: merge=True",
        )


def _check_changed(
    changes: Changes, differs: Mapping[str, Any], params: Mapping[str, Any], folder: Path
) -> None:
    """Refuses an adapter that makes the base of the base."""
    if any(bool(value) for value in differs.values()):
        return
    if changes.adds_nothing:
        raise JaxdiffError(
            "every update of the adapter is zero, so that the model would be its base",
            where=folder,
            fix="an adapter starts with lora_B = 0: save it after training",
        )
    dtypes = ", ".join(sorted({str(leaf.dtype) for leaf in params.values()}))
    raise JaxdiffError(
        f"the adapter is so small that adding it to {dtypes} weights changes none of them",
        where=folder,
        fix="keep it apart (merge=False), or load the base in float32",
    )
