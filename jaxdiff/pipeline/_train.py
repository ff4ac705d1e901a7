"""Stage 2: every dictionary of a run, on every pair."""

import contextlib
import functools
import math

from jaxdiff.activations import (
    ActivationSource,
    DifferenceSource,
    Store,
    StoreSource,
    difference,
    scan,
)
from jaxdiff.config import RunConfig
from jaxdiff.mesh import data_parts, make_mesh
from jaxdiff.pipeline._harvest import stream
from jaxdiff.pipeline.plan import Stage, pairs, passes, plan
from jaxdiff.progress import log
from jaxdiff.training import Validation, train_together


def train(config: RunConfig) -> None:
    """Trains the dictionaries of the config on each pair's activations.

    Args:
        config: The run; its harvest must be complete.

    Raises:
        JaxdiffError: If a store is missing, damaged or of other settings, or training cannot go on.
        Preempted: If SIGTERM came; what was done is saved.
    """
    stages = plan(config)
    for pair in pairs(config):
        for names in passes(config):
            _train_some(config, stages, [stages[f"{pair}/train/{name}"] for name in names])


def _train_some(config: RunConfig, stages: dict[str, Stage], chosen: list[Stage]) -> None:
    pair = chosen[0].pair
    held_out = stages[f"{pair}/harvest/validation"]
    held_out.finished()
    with contextlib.ExitStack() as stack:
        folders = {}
        for stage in chosen:
            work = stack.enter_context(stage.work(among=len(chosen)))
            if work is None:
                log(f"{stage.name}: done already")
            else:
                folders[work] = stage
        if not folders:
            return
        log(", ".join(stage.name for stage in folders.values()))
        source: ActivationSource = _source(config, stages, pair)
        validation: Validation = functools.partial(
            scan, Store.open(held_out.folder), config.train.batch
        )
        if config.dictionaries[chosen[0].what].difference:
            source, validation = DifferenceSource(source), _differences(validation)
        train_together(
            {work: config.dictionaries[stage.what] for work, stage in folders.items()},
            config.train,
            source,
            validation,
            seed=config.seed,
            mesh=make_mesh(config.mesh.data, config.mesh.latent),
        )


def _differences(validation: Validation) -> Validation:
    return lambda: map(difference, validation())


def _source(config: RunConfig, stages: dict[str, Stage], pair: str) -> ActivationSource:
    if config.harvest.mode == "stream":
        return stream(config, pairs(config)[pair])
    harvested = stages[f"{pair}/harvest/train"]
    harvested.finished()
    return store_source(Store.open(harvested.folder), config)


def store_source(store: Store, config: RunConfig) -> StoreSource:
    """Returns the source that a run trains from; its order of rows is the same on any hardware."""
    window = 16
    # Whatever the hardware, large stores are read in as many lanes, which hosts can share.
    lanes = math.gcd(window, config.train.batch) if len(store.blocks) >= window**2 else 1
    mesh = make_mesh(config.mesh.data, config.mesh.latent)
    return StoreSource(store, window=window, lanes=lanes, parts=data_parts(mesh))
