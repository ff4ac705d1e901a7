"""Moving rows of text to the devices of a mesh, and rows of results back."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from jaxdiff.activations.normalization import Moments
from jaxdiff.mesh import DATA, LATENT, sharding
from jaxdiff.models import LM
from jaxdiff.types import HostOrDevice

# A forward pass has no latents to split: the rows use the devices of both axes. So every process
# has rows of its own, whatever the shape of the mesh.
_ROWS = (DATA, LATENT)


def row_sharding(mesh: Mesh | None) -> NamedSharding | None:
    """Returns the sharding of an array whose first axis is split over all devices."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec(_ROWS))


def rows_multiple(mesh: Mesh | None) -> int:
    """Returns what this process's number of rows must be a multiple of."""
    return 1 if mesh is None else len(mesh.local_devices)


def place_rows(
    array: Shaped[HostOrDevice, "..."], mesh: Mesh | None, axis: int = 0
) -> Shaped[HostOrDevice, "..."]:
    """Returns the array of all processes' rows, split over the devices; unchanged without mesh."""
    if mesh is None:
        return array
    where = NamedSharding(mesh, PartitionSpec(*[None] * axis, _ROWS))
    return jax.make_array_from_process_local_data(where, np.asarray(array))


def place_models(models: tuple[LM, ...], mesh: Mesh | None) -> tuple[LM, ...]:
    """Copies to every device of the mesh the weights that are not spread over it already."""
    if mesh is None:
        return models
    everywhere, devices = sharding(mesh), set(mesh.devices.flat)

    def place(leaf):
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices:
            return leaf
        return jax.device_put(np.asarray(leaf), everywhere)

    return jax.tree.map(place, models)


def local_rows(array: Shaped[Array, "..."]) -> Shaped[np.ndarray, "..."]:
    """Returns this process's rows of an array that is split over its first axis, in order."""
    if array.is_fully_addressable:
        return np.asarray(array)
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def spans_processes(mesh: Mesh | None) -> bool:
    """Returns whether the processes run every program together, so that none may run ahead."""
    return mesh is not None and jax.process_count() > 1


def everywhere(here: bool, lockstep: bool) -> bool:
    """Returns whether something holds on all processes that run in lockstep."""
    return bool(np.all(multihost_utils.process_allgather(np.array(here)))) if lockstep else here


def merge_processes(moments: Moments) -> Moments:
    """Returns the moments of the rows of all processes, the same ones on each."""
    if jax.process_count() == 1:
        return moments
    # Bytes, since the gather runs on devices, where float64 would lose half of its digits.
    parts = (np.float64(moments.count), moments.mean, moments.m2)
    flat = np.concatenate([np.ravel(part) for part in parts])
    raw = np.asarray(multihost_utils.process_allgather(flat.view(np.uint8)))
    gathered = np.ascontiguousarray(raw).view(np.float64)
    d = moments.mean.size
    mean = gathered[:, 1 : 1 + d].reshape(-1, *moments.mean.shape)
    zero = Moments.zeros((moments.mean.shape[0], moments.mean.shape[1]))
    return zero.merge(gathered[:, 0], mean, gathered[:, 1 + d :])


def merge_states(state: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of all processes' positions in the data, the same on each."""
    if jax.process_count() == 1:
        return state
    raw = np.frombuffer(json.dumps(state).encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(raw.size)))
    padded = np.pad(raw, (0, int(sizes.max()) - raw.size))
    texts = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    merged: dict[str, Any] = {}
    for text, size in zip(texts, sizes, strict=True):
        merged |= json.loads(text[:size].astype(np.uint8).tobytes())
    return merged
