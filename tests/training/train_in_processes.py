"""One of several processes that train together; run by test_processes.py.

Arguments: a folder with a store, where results go, the mesh's devices here, this process's number,
the number of processes, a port, what happens before batch 13 (`killed`: all die at once; `asked`:
process 1 gets SIGTERM; `nothing`), and the kinds of step that are trained with, one after another.
"""

import functools
import itertools
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

BATCH = 13


def start(devices, index, count, port):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.distributed.initialize(f"localhost:{port}", num_processes=count, process_id=index)


def main(store, out, fate, *kinds):
    """Trains on a mesh of four devices."""
    from jaxdiff.activations import Store, StoreSource, scan
    from jaxdiff.config import DictionaryConfig, TrainConfig
    from jaxdiff.dictionaries import encode
    from jaxdiff.mesh import data_parts, make_mesh, to_host
    from jaxdiff.training import loop, train

    class Fated(StoreSource):
        """Something happens before a batch."""

        def batches(self, batch, *, seed, epochs=None):
            plain = super().batches(batch, seed=seed, epochs=epochs)
            step, taken = plain.__class__.__next__, []

            class Fateful(plain.__class__):
                def __next__(self):
                    taken.append(1)
                    if len(taken) == BATCH and fate == "killed":
                        os._exit(9)
                    if len(taken) == BATCH and fate == "asked" and jax.process_index() == 1:
                        os.kill(os.getpid(), signal.SIGTERM)
                    if len(taken) >= BATCH and fate == "asked":
                        time.sleep(0.5)  # Until it is noticed, which takes about a second.
                    return step(self)

            plain.__class__ = Fateful
            return plain

    if jax.process_count() > 1:
        # By the first process's clock every third step is due to be saved, by the others' none is.
        clock = itertools.count(0, 25 if jax.process_index() == 0 else 0)
        loop.time = SimpleNamespace(monotonic=lambda: next(clock))
    config = DictionaryConfig(latents=32, k=3, dead_after=300)
    own = {"steps": 30, "batch": 32, "lr": 1e-2, "warmup": 3, "log_every": 1}
    own |= {"checkpoint_every": 100, "checkpoint_minutes": 1}
    mesh = make_mesh(2, 2)
    rows = Store.open(store)
    for kind in kinds:
        result = train(
            config,
            TrainConfig(**own, step=kind, beta1=0.9 if kind == "dense" else 0),
            Fated(rows, window=4, lanes=4, parts=data_parts(mesh)),
            functools.partial(scan, rows, 64),
            folder=out / kind,
            seed=3,
            mesh=mesh,
        )
        x = result.normalization.apply(rows.read(0, 64).x)
        active = to_host(jax.jit(encode)(result.dictionary, x)) > 0
        np.save(out / f"{kind}-active-{jax.process_index()}.npy", active)


if __name__ == "__main__":
    # Compiling is most of the time.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    start(*map(int, sys.argv[3:7]))

    from jaxdiff.errors import Preempted

    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[7:])
    except Preempted as error:
        print(error)
        sys.exit(error.code)
