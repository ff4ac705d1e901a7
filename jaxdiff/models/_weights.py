"""Parameters from and to safetensors files; each device reads only its own part of them."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from safetensors import SafetensorError, safe_open

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._mapping import Source, original, sources
from jaxdiff.models._report import LoadReport, report
from jaxdiff.models.architecture import Architecture
from jaxdiff.models.spec import ModelConfig


def read(
    files: list[Path],
    architecture: Architecture,
    spec: ModelConfig,
    shapes: Mapping[str, Any],
    dtype: np.dtype,
    shardings: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], LoadReport]:
    """Reads parameters from safetensors files, each device only its own part.

    Args:
        files: Files that together hold the model.
        architecture: Says what the files call the parameters.
        spec: The model.
        shapes: Nested dict of the parameters' shapes; its `blocks` may be a tuple of layers.
        dtype: Dtype to convert to.
        shardings: The same of shardings; one default device when None.

    Returns:
        Nested dict of arrays, and what became of each tensor.

    Raises:
        JaxdiffError: If a file is damaged, or tensors are missing, unknown, or of wrong shape or
            dtype; the message lists all of them.
    """
    flat = flatten(shapes)
    sharding = dict.fromkeys(flat) if shardings is None else flatten(shardings)
    places = sources(architecture, spec.n_heads, flat)
    with opened(files) as tensors:
        found = report(tensors, architecture, places)
        if found.problems:
            raise JaxdiffError(
                f"{len(found.problems)} tensors do not fit the config:\n  "
                + "\n  ".join(found.problems),
                where=files[0].parent,
                fix="config.json and the weights must be of the same model",
            )
        tensors = {original(architecture, name): tensor for name, tensor in tensors.items()}
        arrays = {
            path: _array(place, tensors, flat[path].shape, dtype, sharding[path])
            for path, place in places.items()
        }
    return unflatten(arrays), found


def tensors(
    architecture: Architecture,
    spec: ModelConfig,
    params: Mapping[str, Any],
    dtype: np.dtype | None,
) -> dict[str, np.ndarray]:
    """Returns the tensors of a file with a model's parameters; inverts `read`."""
    flat = flatten(params)
    out: dict[str, np.ndarray] = {}
    for path, place in sources(architecture, spec.n_heads, flat).items():
        leaf = np.asarray(flat[path])
        leaf = leaf if dtype is None else leaf.astype(dtype)
        for index, name in place.names.items():
            value = leaf[index]
            if value.shape == place.shape and not place.transposed:
                out[name] = np.ascontiguousarray(value)
                continue
            joined = out.setdefault(name, np.empty(place.shape, leaf.dtype))
            inner = tuple(slice(0, size) for size in value.shape[1:])
            for here, there in place.pieces(0, value.shape[0], *inner):
                joined[there] = value[here].T if place.transposed else value[here]
    return out


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts and tuples by dotted path."""
    if not isinstance(tree, Mapping | tuple):
        return {prefix[:-1]: tree}
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return {
        path: leaf
        for key, value in items
        for path, leaf in flatten(value, f"{prefix}{key}.").items()
    }


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    blocks = tree.get("blocks", {})
    if blocks and all(key.isdecimal() for key in blocks):
        tree["blocks"] = tuple(blocks[str(i)] for i in range(len(blocks)))
    return tree


@contextmanager
def opened(files: list[Path]) -> Iterator[dict[str, Any]]:
    """Opens safetensors files; yields a lazy slice by tensor name.

    Raises:
        JaxdiffError: If some are truncated or damaged; the message lists them.
    """
    lazy, broken = {}, []
    with ExitStack() as stack:
        for path in files:
            try:
                # The header is checked against the size here, so a cut file is found before use.
                file = stack.enter_context(safe_open(path, framework="numpy"))
                lazy |= {name: file.get_slice(name) for name in file.keys()}
            except SafetensorError as error:
                broken.append(f"{path.name}: {error}")
        if broken:
            raise JaxdiffError(
                f"{len(broken)} weight files are truncated or damaged:\n  " + "\n  ".join(broken),
                where=files[0].parent,
                fix="download or save them again",
            )
        yield lazy


def _array(
    place: Source,
    tensors: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: Sharding | None,
) -> jax.Array:
    """Returns one parameter; only the bytes of this process's shards are read."""
    shards: dict[tuple[tuple[int, int, int], ...], np.ndarray] = {}

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or (slice(None),) * len(shape)
        # Devices that hold the same shard ask for it one after the other.
        key = tuple(part.indices(size) for part, size in zip(index, shape, strict=True))
        if key not in shards:
            shards[key] = _shard(place, tensors, [range(*part) for part in key], dtype)
        return shards[key]

    if sharding is None:
        return jnp.asarray(read(None))
    return jax.make_array_from_callback(shape, sharding, read)


def _shard(
    place: Source, tensors: Mapping[str, Any], ranges: list[range], dtype: np.dtype
) -> np.ndarray:
    shard = np.empty([len(part) for part in ranges], dtype)
    outputs, *inner = ranges[place.axes :]
    inputs = [slice(part.start, part.stop) for part in inner]
    wanted = itertools.product(*ranges[: place.axes])
    for out, index in zip(shard.reshape(-1, *shard.shape[place.axes :]), wanted, strict=True):
        tensor = tensors[place.names[index]]
        for here, there in place.pieces(outputs.start, outputs.stop, *inputs):
            out[here] = tensor[there].T if place.transposed else tensor[there]
    return shard
