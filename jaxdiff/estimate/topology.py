"""Names of hardware, like v5p:4x4x4 or h100:8, and the devices that the compiler makes of them."""

import difflib
import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import AxisType, Mesh

from jaxdiff.config import MeshConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.estimate.chips import CHIPS, Chip
from jaxdiff.mesh import DATA, LATENT


@dataclass(frozen=True)
class Topology:
    """Chips and how they are joined.

    Attributes:
        name: As it was asked for.
        chip: What each chip can do.
        shape: Chips along each axis of the slice, or their number.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """Number of JAX devices."""
        return self.chips * self.chip.devices

    @property
    def compiled(self) -> bool:
        """Whether the compiler for these chips is installed."""
        return not self.chip.gpu and importlib.util.find_spec("libtpu") is not None


def parse(name: str) -> Topology:
    """Reads the name of a topology: chip and shape.

    Raises:
        JaxdiffError: If there is no such chip, or it is not offered in this shape.
    """
    found = re.fullmatch(r"([\w]+):(\d+(?:x\d+)*)", name)
    known = ", ".join(f"{chip}:{own.shapes[-1]}" for chip, own in CHIPS.items())
    if found is None or found[1] not in CHIPS:
        near = difflib.get_close_matches(name.partition(":")[0], CHIPS, 1)
        raise JaxdiffError(
            f"there is no topology {name!r}; it is a chip and a shape",
            where="--topology",
            fix=(f"did you mean {near[0]}? " if near else "") + f"chips are, up to: {known}",
        )
    chip, shape = CHIPS[found[1]], tuple(map(int, found[2].split("x")))
    # A host has 2 x 2 chips, and a slice has whole hosts; the smallest ones are single chips.
    whole = chip.axes == 1 or math.prod(shape) == 1 or all(n % 2 == 0 for n in shape[:2])
    if len(shape) != chip.axes or 0 in shape or math.prod(shape) > chip.most or not whole:
        raise JaxdiffError(
            f"{chip.about} is not offered as {found[2]}",
            where="--topology",
            fix=f"known shapes are {', '.join(f'{chip.name}:{shape}' for shape in chip.shapes)}",
        )
    return Topology(name, chip, shape)


def split(topology: Topology, mesh: MeshConfig) -> tuple[int, int]:
    """Returns the sizes of the axes `data` and `latent` of a run's mesh on a topology.

    Raises:
        JaxdiffError: If it needs more devices than there are, or leaves some idle.
    """
    latent = mesh.latent or max(topology.devices // mesh.data, 1)
    if mesh.data * latent != topology.devices:
        raise JaxdiffError(
            f"a mesh of data={mesh.data} x latent={latent} does not use the {topology.devices} "
            f"devices of {topology.name}",
            where="mesh",
            fix=f"choose mesh.data and mesh.latent whose product is {topology.devices}, or leave "
            "mesh.latent open",
        )
    return mesh.data, latent


def make_mesh(topology: Topology, sizes: tuple[int, int]) -> Mesh:
    """Returns a mesh of devices that programs can be compiled for, and not run on.

    Raises:
        JaxdiffError: If the installed compiler does not know the topology.
    """
    # Without these, libtpu asks a metadata server that is not there, and logs that it is not.
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        described: Any = topologies.get_topology_desc(topology.name, platform="tpu")
    except Exception as error:  # A backend's error, of a class that differs between versions.
        raise JaxdiffError(
            f"the installed compiler cannot make {topology.name}: {str(error).splitlines()[0]}",
            where="--topology",
            fix=f"known shapes are {', '.join(topology.chip.shapes)}; or install a newer libtpu",
        ) from None
    devices = np.array(described.devices).reshape(sizes)
    return Mesh(devices, (DATA, LATENT), axis_types=(AxisType.Auto,) * 2)


_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
