"""The kind of step that a run takes, decided once: also if it dies before its first checkpoint."""

import json
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.manifest import write_atomically
from jaxdiff.training import settings
from jaxdiff.training.break_even import faster_step

NAME = "step.json"
"""File in the folder of checkpoints, and removed with them."""


def first_step(
    config: DictionaryConfig,
    train: TrainConfig,
    shape: tuple[int, int],
    mesh: Mesh,
    *,
    folder: Path,
    own: dict[str, Any],
) -> Literal["dense", "sparse"]:
    """Returns the step of a run without checkpoints: that of an earlier start, or the faster one.

    What was measured is kept, since a second measurement may answer otherwise, and the two steps
    round differently. With several processes, all must call it together.

    Args:
        config: Settings of the dictionary.
        train: Settings of training.
        shape: Sources and their width, (M, D).
        mesh: Devices.
        folder: Folder of the run.
        own: Settings as JSON; an earlier start with others does not count.

    Raises:
        JaxdiffError: As `faster_step` does.
    """
    if train.step != "auto":
        return faster_step(config, train, shape, mesh)
    path = folder / "checkpoints" / NAME
    found = json.loads(path.read_text()) if path.exists() else None
    if found and not settings.differences(found["settings"], own):
        return found["step"]
    step = faster_step(config, train, shape, mesh)
    if jax.process_index() == 0:  # The others have looked: they took part in the measurement.
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps({"settings": own, "step": step}).encode())
    return step
