"""Where in a model's files each parameter is: an architecture's rows, applied to one model."""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxdiff.models.architecture import Architecture, Row

Index = tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """The tensors that hold one parameter.

    The outputs of a tensor are `groups` runs of `stride` outputs, and the parameter is `size` of
    each run, from `start` on. A tensor that holds one parameter is one run.

    Attributes:
        names: Name of the tensor for each index of the parameter's leading axes: layers, experts.
        shape: Shape of each tensor.
        transposed: Whether outputs are its last axis instead of its first.
        start: First output of the parameter in each run.
        size: Outputs of the parameter in each run.
        stride: Outputs of each run.
    """

    names: Mapping[Index, str]
    shape: tuple[int, ...]
    transposed: bool
    start: int
    size: int
    stride: int

    @property
    def axes(self) -> int:
        """How many leading axes the parameter has."""
        return len(next(iter(self.names)))

    def pieces(
        self, low: int, high: int, *inner: slice
    ) -> Iterator[tuple[slice, tuple[slice, ...]]]:
        """Yields what outputs `low` to `high - 1` of the parameter are in a tensor.

        Args:
            low: First output.
            high: Output after the last.
            *inner: Slice of the inputs, for a matrix.

        Yields:
            A slice of the wanted outputs, and the index of the same numbers in the tensor.
        """
        at = low
        while at < high:
            group, offset = divmod(at, self.size)
            end = min(high, (group + 1) * self.size)
            there = group * self.stride + self.start + offset
            outputs = slice(there, there + end - at)
            index = (*inner, outputs) if self.transposed else (outputs, *inner)
            yield slice(at - low, end - low), index
            at = end


def sources(architecture: Architecture, heads: int, shapes: Mapping[str, Any]) -> dict[str, Source]:
    """Returns where every parameter is.

    Args:
        architecture: Says what the files call the parameters.
        heads: Heads of the model.
        shapes: Parameters by dotted path, stacked (`blocks.attn.q.weight`) or one tree a layer
            (`blocks.3.attn.q.weight`).

    Raises:
        ValueError: If the architecture has no row for a parameter.
    """
    rows = {path: row for row in architecture.rows for path in row.paths}
    places = {path: _place(path) for path in shapes}
    unknown = sorted(path for path, (_, plain) in places.items() if plain not in rows)
    if unknown:
        raise ValueError(f"{architecture.model_type} has no row for {', '.join(unknown)}")
    return {
        path: _source(rows[plain], layer, plain, heads, shapes)
        for path, (layer, plain) in places.items()
    }


def original(architecture: Architecture, name: str) -> str:
    """Returns what the architecture's rows call a tensor of a file."""
    for pattern, becomes in architecture.renamed:
        found = re.match(pattern, name)
        if found:
            return becomes + name[found.end() :]
    return name


def _place(path: str) -> tuple[int | None, str]:
    """Splits the number of the layer off a path."""
    found = re.match(r"blocks\.(\d+)\.", path)
    return (int(found[1]), f"blocks.{path[found.end() :]}") if found else (None, path)


def _source(
    row: Row, layer: int | None, plain: str, heads: int, shapes: Mapping[str, Any]
) -> Source:
    paths = [
        path if layer is None else path.replace("blocks.", f"blocks.{layer}.", 1)
        for path in row.paths
    ]
    fields = [name for name in ("i", "e") if f"{{{name}}}" in row.hf]
    fixed = {} if layer is None else {"i": layer}
    free = [name for name in fields if name not in fixed]

    part = row.paths.index(plain)
    leading = shapes[paths[part]].shape[: len(free)]
    outputs = [shapes[path].shape[len(free)] for path in paths]
    inner = shapes[paths[part]].shape[len(free) + 1 :]
    groups = heads if row.by_head else 1
    return Source(
        names={
            index: row.hf.format(**fixed, **dict(zip(free, index, strict=True)))
            for index in itertools.product(*map(range, leading))
        },
        shape=(*inner, sum(outputs)) if row.transposed else (sum(outputs), *inner),
        transposed=row.transposed,
        start=sum(outputs[:part]) // groups,
        size=outputs[part] // groups,
        stride=sum(outputs) // groups,
    )
