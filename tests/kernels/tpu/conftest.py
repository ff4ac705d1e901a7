"""What stands in for a TPU: its compiler, where it is installed. Otherwise nothing is collected."""

import importlib.util
import os

import jax
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

collect_ignore_glob = [] if importlib.util.find_spec("libtpu") else ["test_*.py"]
# Asks no cloud machine what it is, and lets several processes compile at a time.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

TOPOLOGIES = ("v5e:2x2", "v5p:4x4x4", "v6e:2x2")


@pytest.fixture(params=TOPOLOGIES)
def on_tpu(request):
    """Returns `(shape, dtype)` to an abstract array on a chip of the topology."""
    topology = topologies.get_topology_desc(request.param, platform="tpu")
    place = SingleDeviceSharding(topology.devices[0])

    def array(shape, dtype=jax.numpy.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    return array
