"""Trains in a folder, and kills itself the hard way at a given moment: see test_resume.py."""

import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import jax
import memory_source

from jaxdiff import checkpoint
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.training import train

CONFIG = DictionaryConfig(latents=16, k=2, k_start=4.0, k_anneal=20, dead_after=100)
TRAIN = TrainConfig(
    steps=30, batch=32, lr=1e-2, warmup=3, beta1=0.0, checkpoint_every=7, log_every=2
)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder, step, moment):
    source = memory_source.gaussian_source()
    if moment.startswith("batch"):
        plain = memory_source.Batches.__next__

        def next_batch(self):
            if self.at == int(moment[5:]):
                die()
            return plain(self)

        memory_source.Batches.__next__ = next_batch
    if moment.startswith("save"):
        from orbax.checkpoint import v1 as ocp

        save, seen = ocp.save_async, []

        def save_and_die(path, *args, **kwargs):
            seen.append(path)
            response = save(path, *args, **kwargs)
            if len(seen) == 2 and moment == "save-begun":
                while len(list(pathlib.Path(path).parent.iterdir())) < 2:
                    pass  # Until the unfinished folder is there.
                die()
            if len(seen) == 2 and moment == "save-done":
                response.result()
                die()
            return response

        ocp.save_async = save_and_die
    if moment == "remove":

        def remove_and_die(path):
            os.replace(path, path.with_name(path.name + ".removed"))
            die()

        checkpoint._remove = remove_and_die
    settings = TRAIN.model_copy(update={"step": step})
    train(CONFIG, settings, source, source.in_order, folder=pathlib.Path(folder), seed=3)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # As in the process it is compared with.
    main(*sys.argv[1:])
