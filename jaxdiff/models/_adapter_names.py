"""Which parameters of a model the tensors of an adapter change."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxdiff.models._adapter_config import AdapterConfig
from jaxdiff.models._mapping import Index, Source, original
from jaxdiff.models._report import LoadReport, misfit, reason
from jaxdiff.models.architecture import Architecture

_PREFIX = "base_model.model."
_LOW_RANK = re.compile(
    r"(.+)\.lora_(?:([AB])(?:\.default)?\.weight|embedding_([AB])(?:\.default)?)"
)
_WRAPPER = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
_EXPERT = re.compile(r"(.*\.experts)\.\d+\.(.*)")


class Place(NamedTuple):
    """One of the parameters that a tensor of the base's files holds: path, layer and expert."""

    path: str
    index: Index
    source: Source


class Update(NamedTuple):
    """A low-rank update of a matrix of the base's files.

    Attributes:
        places: The parameters that the matrix holds.
        a: Name of the tensor `[rank, in]`.
        b: Name of the tensor `[out, rank]`.
        embedding: The matrix is looked up by row, so that its update is `(b @ a).T`.
        scale: What the update is multiplied by.
    """

    places: tuple[Place, ...]
    a: str
    b: str
    embedding: bool
    scale: float


@dataclass(frozen=True)
class Found:
    """What an adapter changes.

    Attributes:
        updates: Its low-rank updates.
        replaced: Name of each tensor that replaces one of the base, and what that holds.
        report: What becomes of each tensor.
    """

    updates: tuple[Update, ...]
    replaced: Mapping[str, tuple[Place, ...]]
    report: LoadReport


class _Name(NamedTuple):
    """What the name of an adapter's tensor says.

    Attributes:
        module: Module of the base, as the adapter calls it.
        tensor: Tensor of the base, as the base's files call it.
        factor: A or B; empty if the tensor replaces that of the base.
        embedding: Whether the module is an embedding.
    """

    module: str
    tensor: str
    factor: str
    embedding: bool


def find(
    tensors: Mapping[str, Any],
    config: AdapterConfig,
    architecture: Architecture,
    sources: Mapping[str, Source],
) -> Found:
    """Finds what each tensor of an adapter changes.

    Args:
        tensors: Lazy slice by name.
        config: Settings of the adapter.
        architecture: The base's family.
        sources: Where every parameter of the base is in its files.
    """
    held: dict[str, tuple[Place, ...]] = {}
    for path, source in sources.items():
        for index, name in source.names.items():
            held[name] = (*held.get(name, ()), Place(path, index, source))

    given: dict[_Name, str] = {}
    consumed, ignored, problems = {}, {}, []
    for name in sorted(tensors):
        says = _parse(name, architecture)
        if says is not None and says in given:
            problems.append(f"twice: {name} is also there as {given[says]}")
        elif says is not None and says.tensor in held:
            given[says] = name
            consumed[name] = tuple(place.path for place in held[says.tensor])
        elif says is not None and (why := reason(says.tensor, architecture, sources)):
            ignored[name] = why
        else:
            problems.append(f"unknown: {name}")

    updates, replaced = [], {}
    for says, name in given.items():
        places = held[says.tensor]
        if not says.factor:
            replaced[name] = places
            problems += misfit(name, tensors[name], places[0].source.shape, "the base has")
        elif wrong := _wrong(says, given, tensors, config, places[0].source):
            problems += wrong
        elif says.factor == "A":
            other = given[says._replace(factor="B")]
            scale = config.scale(says.module)
            updates.append(Update(places, name, other, says.embedding, scale))
    problems += _missing(config, held, given)
    return Found(tuple(updates), replaced, LoadReport(consumed, ignored, tuple(problems)))


def _parse(name: str, architecture: Architecture) -> _Name | None:
    if not name.startswith(_PREFIX):
        return None
    plain = name.removeprefix(_PREFIX)
    if found := _LOW_RANK.fullmatch(plain):
        module, factor, embedding = found.groups()
        tensor = original(architecture, f"{module}.weight")
        return _Name(module, tensor, factor or embedding, bool(embedding))
    plain = _WRAPPER.sub("", plain)
    return _Name(plain.rpartition(".")[0], original(architecture, plain), "", False)


def _wrong(
    says: _Name,
    given: Mapping[_Name, str],
    tensors: Mapping[str, Any],
    config: AdapterConfig,
    source: Source,
) -> list[str]:
    """Returns what is wrong with one factor of an update."""
    name, other = given[says], "A" if says.factor == "B" else "B"
    if says._replace(factor=other) not in given:
        return [f"missing: lora_{other} beside {name}"]
    if config.targeted and not config.updates(says.module):
        return [f"no target: {name} is of a module that adapter_config.json does not name"]
    if len(source.shape) != 2:
        return [f"no matrix: {name} is of {says.tensor} {list(source.shape)}"]
    inputs, outputs = source.shape if source.transposed ^ says.embedding else source.shape[::-1]
    rank = config.rank(says.module)
    shape = (rank, inputs) if says.factor == "A" else (outputs, rank)
    return misfit(name, tensors[name], shape, f"{says.tensor} and rank {rank} want")


def _missing(
    config: AdapterConfig, held: Mapping[str, tuple[Place, ...]], given: Mapping[_Name, str]
) -> list[str]:
    """Returns a line for every tensor that the config speaks of and the adapter lacks."""
    updated = {says.tensor for says in given if says.factor}
    replaced = {says.tensor for says in given if not says.factor}
    # Newer modules join all experts, so that the name of one of them reaches none.
    experts = {_EXPERT.sub(r"\1.\2", name) for name in updated if _EXPERT.match(name)}
    lines = []
    for name, places in held.items():
        module, _, kind = name.rpartition(".")
        shape = list(places[0].source.shape)
        there = not _EXPERT.match(name) or _EXPERT.sub(r"\1.\2", name) in experts
        matrix = kind == "weight" and len(shape) == 2 and there
        if matrix and name not in updated and config.updates(module):
            lines.append(f"missing: an update of {name} {shape}, which target_modules names")
        if name in replaced:
            continue
        if config.replaces(module):
            lines.append(f"missing: {name} {shape}, which modules_to_save names")
        elif kind == "bias" and config.replaces_bias(module):
            lines.append(f"missing: {name} {shape}, for bias={config.bias!r}")
    return lines
