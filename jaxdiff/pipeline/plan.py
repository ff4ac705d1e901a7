"""What every stage of a run is made from: its settings and inputs, hence its fingerprint."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxdiff import manifest, text
from jaxdiff.config import BOOKKEEPING, PairConfig, RunConfig
from jaxdiff.pipeline import inputs

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        kind: What is done.
        pair: `main` or `null`.
        what: Split of the text (harvest), or name of the dictionary.
        folder: Where the result is.
        config: Settings that decide the result.
        inputs: Fingerprints of what is read.
        seed: Seed.
    """

    kind: Literal["harvest", "train", "diff"]
    pair: str
    what: str
    folder: Path
    config: dict[str, Any]
    inputs: dict[str, str]
    seed: int

    @property
    def name(self) -> str:
        """Name for messages and the report."""
        return f"{self.pair}/{self.kind}/{self.what}"

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the result."""
        return manifest.fingerprint(
            self.kind, config=self.config, inputs=self.inputs, seed=self.seed
        )

    def work(self, among: int = 1) -> contextlib.AbstractContextManager[Path | None]:
        """Returns the context in which the stage is done; see `manifest.stage`."""
        return manifest.stage(
            self.folder,
            self.kind,
            config=self.config,
            inputs=self.inputs,
            seed=self.seed,
            among=among,
        )

    def finished(self) -> manifest.Manifest:
        """Returns the manifest of the complete stage.

        Raises:
            JaxdiffError: If it is missing, damaged, or made from other settings or inputs.
        """
        return manifest.expect(self.folder, self.fingerprint)


def pairs(config: RunConfig) -> dict[str, PairConfig]:
    """Returns the pairs of a run: `main`, and `null` if there is one."""
    null = {} if config.null_pair is None else {"null": config.null_pair}
    return {"main": config.models} | null


def passes(config: RunConfig) -> list[tuple[str, ...]]:
    """Returns the dictionaries of each pass over a pair's activations, by name.

    All are trained in one pass, `train.together` at a time; those of the models' difference in
    another, since they have a source of their own.
    """
    found: list[tuple[str, ...]] = []
    for differs in (False, True):
        names = [name for name, own in config.dictionaries.items() if own.difference == differs]
        size = config.train.together or max(len(names), 1)
        found += [tuple(names[at : at + size]) for at in range(0, len(names), size)]
    return found


def plan(config: RunConfig) -> dict[str, Stage]:
    """Returns all stages of a run by name, in an order in which they can be done.

    In stream mode there is no harvest of the train split, and of dictionaries that are not of two
    models at one site there is no diff.

    Raises:
        JaxdiffError: If models or text cannot be found, or do not fit together.
    """
    stages: dict[str, Stage] = {}
    ranges = text.splits(inputs.resolve_text(config))
    for pair, models in pairs(config).items():
        read = inputs.fingerprints(config, models)
        made = {split: _harvest(config, pair, split, ranges[split], read) for split in SPLITS}
        if config.harvest.mode == "stream":
            streamed = made.pop("train")
        else:
            streamed = None
        for name in config.dictionaries:
            made[name] = _train(config, pair, name, made, streamed)
            if config.compares(name):
                made[f"diff {name}"] = _diff(config, pair, name, made)
        stages |= {stage.name: stage for stage in made.values()}
    order = ("harvest", "train", "diff")
    return dict(sorted(stages.items(), key=lambda item: order.index(item[1].kind)))


def _harvest(
    config: RunConfig, pair: str, split: str, documents: tuple[int, int], read: dict[str, str]
) -> Stage:
    models = pairs(config)[pair]
    settings = {
        "documents": documents,
        "site": config.site,
        "context": config.text.context,
        "pack": config.text.pack,
        "weights": [source.weight for source in config.text.sources],
        "harvest": config.harvest.model_dump(mode="json", exclude={"mode", "ring"}),
        "dtype": models.dtype,
        "base_token_map": models.base_token_map,
    }
    folder = config.out / pair / "harvest" / split
    return Stage("harvest", pair, split, folder, settings, read, config.seed)


def _train(
    config: RunConfig, pair: str, name: str, made: dict[str, Stage], streamed: Stage | None
) -> Stage:
    settings: dict[str, Any] = {
        "dictionary": config.dictionaries[name].model_dump(mode="json"),
        "train": config.train.model_dump(mode="json", exclude=set(BOOKKEEPING)),
    }
    read = {"validation": made["validation"].fingerprint}
    if streamed is None:
        read["train"] = made["train"].fingerprint
    else:
        read["train"] = streamed.fingerprint
        settings["ring"] = config.harvest.ring
    folder = config.out / pair / "train" / name
    return Stage("train", pair, name, folder, settings, read, config.seed)


def _diff(config: RunConfig, pair: str, name: str, made: dict[str, Stage]) -> Stage:
    read = {"dictionary": made[name].fingerprint, "test": made["test"].fingerprint}
    settings = config.diff.model_dump(mode="json")
    folder = config.out / pair / "diff" / name
    return Stage("diff", pair, name, folder, settings, read, config.seed)
