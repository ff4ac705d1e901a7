"""Parameters from and to safetensors files, one mapping for both directions."""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Sharding
from safetensors import SafetensorError, safe_open

from jaxdiff.errors import JaxdiffError
from jaxdiff.models.architecture import Architecture

_FLOATS = ("F64", "F32", "F16", "BF16")
# Tables that follow from the config, and the head of a tied model that was saved all the same.
_IGNORED = re.compile(r"lm_head\.weight|.*\.rotary_emb\.inv_freq")


def names(architecture: Architecture, shapes: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the file's names of every parameter: one name a layer, or one.

    Args:
        architecture: Says what the file calls them.
        shapes: Parameters by dotted path.

    Raises:
        ValueError: If the architecture has no row for a parameter.
    """
    hf = {row.path: row.hf for row in architecture.rows}
    unknown = sorted(shapes.keys() - hf.keys())
    if unknown:
        raise ValueError(f"{architecture.model_type} has no row for {', '.join(unknown)}")
    return {
        path: [hf[path].format(i=i) for i in range(leaf.shape[0])] if stacked(path) else [hf[path]]
        for path, leaf in shapes.items()
    }


def read(
    files: list[Path],
    architecture: Architecture,
    shapes: Mapping[str, Any],
    dtype: np.dtype,
    shardings: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Reads parameters from safetensors files, each device only its own part.

    Args:
        files: Files that together hold the model.
        architecture: Says what the files call the parameters.
        shapes: Nested dict of the parameters' shapes.
        dtype: Dtype to convert to.
        shardings: Nested dict of shardings; one default device when None.

    Returns:
        Nested dict of arrays.

    Raises:
        JaxdiffError: If a file is damaged, or tensors are missing, unknown, or of wrong shape or
            dtype; the message lists all of them.
    """
    flat = flatten(shapes)
    sharding = {path: None for path in flat} if shardings is None else flatten(shardings)
    wanted = names(architecture, flat)
    with _open(files) as tensors:
        problems = _problems(tensors, wanted, flat)
        if problems:
            raise JaxdiffError(
                f"{len(problems)} tensors do not fit the config:\n  " + "\n  ".join(problems),
                where=files[0].parent,
                fix="config.json and the weights must be of the same model",
            )
        arrays = {
            path: _array(
                [tensors[key] for key in keys], flat[path], stacked(path), dtype, sharding[path]
            )
            for path, keys in wanted.items()
        }
    return unflatten(arrays)


def stacked(path: str) -> bool:
    """Returns whether a parameter has a leading layer axis."""
    return path.startswith("blocks.")


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of a nested dict by dotted path."""
    return traverse_util.flatten_dict(tree, sep=".")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `flatten`."""
    return traverse_util.unflatten_dict(flat, sep=".")


@contextmanager
def _open(files: list[Path]) -> Iterator[dict[str, Any]]:
    """Opens safetensors files; yields a lazy slice by tensor name."""
    tensors, broken = {}, []
    with ExitStack() as stack:
        for path in files:
            try:
                # The header is checked against the size here, so a cut file is found before use.
                file = stack.enter_context(safe_open(path, framework="numpy"))
                tensors |= {name: file.get_slice(name) for name in file.keys()}
            except SafetensorError as error:
                broken.append(f"{path.name}: {error}")
        if broken:
            raise JaxdiffError(
                f"{len(broken)} weight files are truncated or damaged:\n  " + "\n  ".join(broken),
                where=files[0].parent,
                fix="download or save them again",
            )
        yield tensors


def _problems(
    tensors: Mapping[str, Any], wanted: Mapping[str, list[str]], shapes: Mapping[str, Any]
) -> list[str]:
    problems = []
    for path, keys in wanted.items():
        shape = shapes[path].shape[stacked(path) :]
        for key in keys:
            if key not in tensors:
                problems.append(f"missing: {key} {list(shape)}")
            elif tuple(tensors[key].get_shape()) != shape:
                problems.append(
                    f"shape: {key} is {tensors[key].get_shape()}, the config says {list(shape)}"
                )
            elif tensors[key].get_dtype() not in _FLOATS:
                problems.append(f"dtype: {key} is {tensors[key].get_dtype()}, no plain float")
    known = {key for keys in wanted.values() for key in keys}
    unknown = sorted(key for key in tensors.keys() - known if not _IGNORED.fullmatch(key))
    return problems + [f"unknown: {key}" for key in unknown]


def _array(
    slices: list[Any], leaf: Any, stacked: bool, dtype: np.dtype, sharding: Sharding | None
) -> jax.Array:
    """Returns one parameter; only the bytes of this process's shards are read."""
    shards: dict[tuple[tuple[int, int, int], ...], np.ndarray] = {}

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or (slice(None),) * len(leaf.shape)
        # Devices that hold the same shard ask for it one after the other.
        key = tuple(part.indices(size) for part, size in zip(index, leaf.shape, strict=True))
        if key not in shards:
            shard = np.empty([len(range(*part)) for part in key], dtype)
            inner = tuple(slice(*part) for part in (key[1:] if stacked else key))
            # No sharding splits the layer axis, so a shard has a part of every layer.
            for out, layer in zip(shard if stacked else shard[None], slices, strict=True):
                out[...] = layer[inner]
            shards[key] = shard
        return shards[key]

    if sharding is None:
        return jnp.asarray(read(None))
    return jax.make_array_from_callback(leaf.shape, sharding, read)
