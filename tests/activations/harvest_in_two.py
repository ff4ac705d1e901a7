"""One of two processes that harvest and stream together; run by test_processes.py."""

import sys

import jax
import numpy as np

index, port, folder, tests = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
sys.path.insert(0, tests)

import conftest  # noqa: E402

from jaxdiff.activations import (  # noqa: E402
    DifferenceSource,
    ModelPair,
    StreamSource,
    harvest,
    write_store,
)
from jaxdiff.config import HarvestConfig  # noqa: E402
from jaxdiff.mesh import make_mesh  # noqa: E402

# Process 0 has twice as much text as process 1: neither may wait for the other for ever.
text = conftest._documents(22)
text = text[:4] if index == 0 else text[4:]
pair = ModelPair((conftest._tiny(0), conftest._tiny(1)))
mesh = make_mesh(2, 2)
site, config = "blocks.1.resid_post", HarvestConfig(dtype="float32", chunk=16, ring=64)

write_store(folder, harvest(pair, text, site, config=config, mesh=mesh), config=config)

stream = StreamSource(pair, text, site, config=config, mesh=mesh)
batches = stream.batches(8, seed=0, epochs=2)
tokens = [(batch.sequences * 100 + batch.positions).tolist() for batch in batches]
given = {"scale": stream.normalization.scale}
difference = DifferenceSource(stream).normalization
given |= {"mean_difference": difference.mean, "scale_difference": difference.scale}
np.savez(f"{folder}/stream-{index}.npz", tokens=np.array(tokens), **given)
