"""One of several processes that train together; run by test_processes.py.

Arguments: a folder with a store, where results go, the mesh's devices here, this process's number,
the number of processes, a port, and the batch before which the process dies (0: it does not).
"""

import functools
import os
import sys
from pathlib import Path

import jax
import numpy as np

store, out = Path(sys.argv[1]), Path(sys.argv[2])
devices, index, count, port, death = map(int, sys.argv[3:])
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", devices)
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=count, process_id=index)

from jaxdiff.activations import Store, StoreSource, scan  # noqa: E402
from jaxdiff.config import DictionaryConfig, TrainConfig  # noqa: E402
from jaxdiff.dictionaries import encode  # noqa: E402
from jaxdiff.mesh import data_parts, make_mesh, to_host  # noqa: E402
from jaxdiff.training import train  # noqa: E402

CONFIG = DictionaryConfig(latents=32, k=3, dead_after=300)
TRAIN = {"steps": 30, "batch": 32, "lr": 1e-2, "warmup": 3, "checkpoint_every": 5, "log_every": 1}


class Mortal(StoreSource):
    """Dies before a batch, with all of its process."""

    def batches(self, batch, *, seed, epochs=None):
        plain = super().batches(batch, seed=seed, epochs=epochs)
        step, taken = plain.__class__.__next__, []

        class Dying(plain.__class__):
            def __next__(self):
                taken.append(1)
                if len(taken) == death:
                    os._exit(9)
                return step(self)

        plain.__class__ = Dying
        return plain


mesh = make_mesh(2, 2)
rows = Store.open(store)
for name, more in {"dense": {}, "sparse": {"beta1": 0, "step": "sparse"}}.items():
    result = train(
        CONFIG,
        TrainConfig(**TRAIN, **more),
        Mortal(rows, window=4, lanes=4, parts=data_parts(mesh)),
        functools.partial(scan, rows, 64),
        folder=out / name,
        seed=3,
        mesh=mesh,
    )
    held_out = rows.read(0, 64)
    x = result.normalization.apply(held_out.x)
    active = to_host(jax.jit(encode)(result.dictionary, x)) > 0
    np.save(out / f"{name}-active-{index}.npy", active)
