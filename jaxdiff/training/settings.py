"""The settings that a training belongs to, as they are kept beside what it wrote."""

import json
from pathlib import Path
from typing import Any

from jaxdiff.config import BOOKKEEPING, Config, DictionaryConfig, TrainConfig
from jaxdiff.errors import JaxdiffError

_KINDS: dict[str, type[Config]] = {"dictionary": DictionaryConfig, "train": TrainConfig}


def record(config: DictionaryConfig, train: TrainConfig, seed: int) -> dict[str, Any]:
    """Returns all settings of one dictionary's training as JSON."""
    return {"dictionary": _plain(config), "train": _plain(train), "seed": seed}


def differences(found: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """Names the settings that decide the result and differ; fields not in `found` have defaults."""
    names = []
    for part, kind in _KINDS.items():
        theirs = _plain(kind()) | found[part]
        names += [
            f"{part}.{name} ({theirs.get(name)}, not {value})"
            for name, value in own[part].items()
            if theirs.get(name) != value and not (part == "train" and name in BOOKKEEPING)
        ]
    if found["seed"] != own["seed"]:
        names.append(f"seed ({found['seed']}, not {own['seed']})")
    return names


def check(found: dict[str, Any], own: dict[str, Any], folder: Path) -> None:
    """Compares what `differences` does.

    Raises:
        JaxdiffError: If some differ; they are named.
    """
    if names := differences(found, own):
        raise JaxdiffError(
            f"the folder belongs to a run with another {', '.join(names)}",
            where=folder,
            fix="choose another folder, or delete this one",
        )


def _plain(config: Config) -> dict[str, Any]:
    return json.loads(config.model_dump_json())
