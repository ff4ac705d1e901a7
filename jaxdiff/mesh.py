"""The device mesh: axis `data` splits rows, axis `latent` splits dictionary latents."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
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
        JaxdiffError: If the axes do not multiply to the number of devices, or to fewer.
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
    return jax.make_mesh(
        (data, latent), (DATA, LATENT), axis_types=(AxisType.Auto,) * 2, devices=devices[:wanted]
    )


def sharding(mesh: Mesh, *axes: str | tuple[str, ...] | None) -> NamedSharding:
    """Returns the sharding of an array whose i-th dimension is split over mesh axes `axes[i]`."""
    return NamedSharding(mesh, P(*axes))
