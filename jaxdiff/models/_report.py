"""What a load does with every tensor of a model's files."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxdiff.models._mapping import Source, original
from jaxdiff.models.architecture import Architecture

_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class LoadReport:
    """What a load does with every tensor of a model's files.

    Attributes:
        consumed: Name of each tensor that is read, and the parameters that it holds (for one
            layer, one expert), in their order.
        ignored: Name of each tensor that is left out on purpose, and why.
        problems: One line for each tensor that is missing, unknown, or of a wrong shape or dtype;
            a model with any of them is not loaded.
        changes: What was done to the weights before they were saved, and what the load does, as in
            `LM.changes`.
    """

    consumed: Mapping[str, tuple[str, ...]]
    ignored: Mapping[str, str]
    problems: tuple[str, ...]
    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line with counts and the record of changes, and one for each problem."""
        reasons = [f"{count} {why}" for why, count in Counter(self.ignored.values()).items()]
        line = f"{len(self.consumed)} tensors read"
        line += f", {len(self.ignored)} ignored ({'; '.join(reasons)})" if reasons else ""
        line += f"; changes: {', '.join(self.changes)}" if self.changes else ""
        line += f"; {len(self.problems)} do not fit:" if self.problems else ""
        return "\n  ".join([line, *self.problems])


def report(
    tensors: Mapping[str, Any], architecture: Architecture, places: Mapping[str, Source]
) -> LoadReport:
    """Compares the tensors of files with those that a model needs.

    Args:
        tensors: Lazy slice by name.
        architecture: Says what is ignored, and which other names there are.
        places: Where every parameter is.
    """
    holds: dict[str, tuple[str, ...]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, place in sorted(places.items(), key=lambda item: item[1].start):
        for name in place.names.values():
            holds[name] = (*holds.get(name, ()), path)
            shapes[name] = place.shape

    given: dict[str, str] = {}
    consumed, ignored, problems = {}, {}, []
    for name in sorted(tensors):
        known = original(architecture, name)
        if known in given:
            problems.append(f"twice: {name} is also there as {given[known]}")
        elif known in holds:
            consumed[name] = holds[known]
            problems += misfit(name, tensors[name], shapes[known], "the config says")
        elif why := reason(known, architecture, places):
            ignored[name] = why
        else:
            problems.append(f"unknown: {name}")
        given[known] = name
    missing = [f"missing: {name} {list(shapes[name])}" for name in holds if name not in given]
    return LoadReport(consumed, ignored, (*missing, *problems))


def misfit(name: str, tensor: Any, shape: tuple[int, ...], wants: str) -> list[str]:
    """Returns a line if a tensor is no float, or its shape is none that something `wants`."""
    if tuple(tensor.get_shape()) != shape:
        return [f"shape: {name} is {tensor.get_shape()}, {wants} {list(shape)}"]
    if tensor.get_dtype() not in _FLOATS:
        return [f"dtype: {name} is {tensor.get_dtype()}, no plain float"]
    return []


def reason(name: str, architecture: Architecture, places: Mapping[str, Source]) -> str | None:
    """Returns why a tensor may be left out, or None."""
    heads = [row.hf for row in architecture.rows if "unembedding" in row.paths]
    if "unembedding" not in places and name in heads:
        return "head tied to the embedding"
    for pattern, why in architecture.ignored:
        if re.fullmatch(pattern, name):
            return why
    return None
