"""The device mesh: axis `data` splits rows, axis `latent` splits dictionary latents."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff.errors import JaxdiffError

DATA, LATENT = "data", "latent"


def make_mesh(data: int = 1, latent: int | None = None) -> Mesh:
    """Builds a `(data, latent)` mesh over the devices of all processes.

    Args:
        data: Devices along the data axis.
        latent: Devices along the latent axis; all remaining ones when None.

    Returns:
        A mesh with automatic axis types.

    Raises:
        JaxdiffError: If the axes do not multiply to the number of devices, or to fewer, or a
            process would have no device.
    """
    devices = jax.devices()
    if latent is None:
        latent = max(len(devices) // data, 1)
    wanted = data * latent
    if data < 1 or latent < 1 or wanted > len(devices):
        raise JaxdiffError(
            f"a mesh of data={data} x latent={latent} needs {max(wanted, data)} devices, "
            f"{len(devices)} are here",
            where="mesh",
            fix="lower mesh.data or mesh.latent; on CPU, JAX_NUM_CPU_DEVICES=8 makes 8 of one",
        )
    owners = {device.process_index for device in devices[:wanted]}
    if len(owners) < jax.process_count():
        raise JaxdiffError(
            f"a mesh of data={data} x latent={latent} has devices of {len(owners)} of "
            f"{jax.process_count()} processes only",
            where="mesh",
            fix=f"use all {len(devices)} devices, or start fewer processes",
        )
    return jax.make_mesh(
        (data, latent), (DATA, LATENT), axis_types=(AxisType.Auto,) * 2, devices=devices[:wanted]
    )


def own_mesh() -> Mesh:
    """Returns a mesh of this process's devices alone, all along the axis `data`.

    What each of several processes computes on it for itself needs no other process.
    """
    devices = jax.local_devices()
    return jax.make_mesh(
        (len(devices), 1), (DATA, LATENT), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def sharding(mesh: Mesh | AbstractMesh, *axes: str | tuple[str, ...] | None) -> NamedSharding:
    """Returns the sharding of an array whose i-th dimension is split over mesh axes `axes[i]`."""
    return NamedSharding(mesh, P(*axes))


def data_parts(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """Returns the indices along the data axis that this process has devices at, and its size."""
    own = jax.process_index()
    rows = mesh.devices.reshape(mesh.devices.shape[0], -1)
    owned = [i for i, row in enumerate(rows) if own in {device.process_index for device in row}]
    return tuple(owned), len(rows)


def to_host(tree: Any) -> Any:
    """Returns arrays as NumPy arrays on every process, whatever devices they are split over.

    With several processes, all must call it together.
    """

    def fetch(leaf: jax.Array) -> np.ndarray:
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(fetch, tree)


def barrier(name: str) -> None:
    """Returns when all processes have called it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
