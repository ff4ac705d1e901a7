"""Stage 2: every dictionary of a run, on every pair."""

import functools
import math

from jaxdiff.activations import ActivationSource, Store, StoreSource, scan
from jaxdiff.config import RunConfig
from jaxdiff.mesh import data_parts, make_mesh
from jaxdiff.pipeline._harvest import stream
from jaxdiff.pipeline.plan import Stage, pairs, plan
from jaxdiff.progress import log
from jaxdiff.training import train as train_dictionary


def train(config: RunConfig) -> None:
    """Trains each dictionary of the config on each pair's activations.

    Args:
        config: The run; its harvest must be complete.

    Raises:
        JaxdiffError: If a store is missing, damaged or of other settings, or training cannot go on.
    """
    stages = plan(config)
    for stage in stages.values():
        if stage.kind == "train":
            _train_one(config, stages, stage)


def _train_one(config: RunConfig, stages: dict[str, Stage], stage: Stage) -> None:
    held_out = stages[f"{stage.pair}/harvest/validation"]
    held_out.finished()
    with stage.work() as work:
        if work is None:
            log(f"{stage.name}: done already")
            return
        log(stage.name)
        train_dictionary(
            config.dictionaries[stage.what],
            config.train,
            _source(config, stages, stage),
            functools.partial(scan, Store.open(held_out.folder), config.train.batch),
            folder=work,
            seed=config.seed,
            mesh=make_mesh(config.mesh.data, config.mesh.latent),
        )


def _source(config: RunConfig, stages: dict[str, Stage], stage: Stage) -> ActivationSource:
    if config.harvest.mode == "stream":
        return stream(config, pairs(config)[stage.pair])
    harvested = stages[f"{stage.pair}/harvest/train"]
    harvested.finished()
    store, window = Store.open(harvested.folder), 16
    # Whatever the hardware, large stores are read in as many lanes, which hosts can share.
    lanes = math.gcd(window, config.train.batch) if len(store.blocks) >= window**2 else 1
    mesh = make_mesh(config.mesh.data, config.mesh.latent)
    return StoreSource(store, window=window, lanes=lanes, parts=data_parts(mesh))
