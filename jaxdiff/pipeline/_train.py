"""Stage 2: every dictionary of a run, on every pair."""

import functools

from jaxdiff import manifest
from jaxdiff.activations import Store, StoreSource, scan
from jaxdiff.config import PairConfig, RunConfig
from jaxdiff.mesh import make_mesh
from jaxdiff.pipeline import inputs
from jaxdiff.pipeline._harvest import settings, stream
from jaxdiff.pipeline.layout import harvest_folder, pairs, train_folder
from jaxdiff.progress import log
from jaxdiff.training import train as train_dictionary


def train(config: RunConfig) -> None:
    """Trains each dictionary of the config on each pair's activations.

    Args:
        config: The run; its harvest must be complete.

    Raises:
        JaxdiffError: If a store is missing or damaged, or training cannot go on.
    """
    for name, pair in pairs(config).items():
        for dictionary in config.dictionaries:
            _train_one(config, name, pair, dictionary)


def _train_one(config: RunConfig, name: str, pair: PairConfig, dictionary: str) -> None:
    own = config.dictionaries[dictionary]
    held_out = harvest_folder(config, name, "validation")
    read = {"validation": manifest.read(held_out).fingerprint}
    decides = {
        "dictionary": own.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json"),
    }
    if config.harvest.mode == "store":
        read["train"] = manifest.read(harvest_folder(config, name, "train")).fingerprint
    else:
        read |= inputs.fingerprints(config, pair)
        decides["stream"] = settings(config, pair, "train")
    folder = train_folder(config, name, dictionary)
    with manifest.stage(folder, "train", config=decides, inputs=read, seed=config.seed) as work:
        if work is None:
            log(f"train {name}/{dictionary}: done already")
            return
        log(f"train {name}/{dictionary}")
        validation = Store.open(held_out)
        train_dictionary(
            own,
            config.train,
            _source(config, name, pair),
            functools.partial(scan, validation, config.diff.batch),
            folder=work,
            seed=config.seed,
            mesh=make_mesh(config.mesh.data, config.mesh.latent),
        )


def _source(config: RunConfig, name: str, pair: PairConfig):
    if config.harvest.mode == "stream":
        return stream(config, pair)
    return StoreSource(Store.open(harvest_folder(config, name, "train")))
