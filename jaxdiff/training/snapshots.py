"""Dictionaries as they were during training, from the checkpoints that `keep_every` keeps."""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxdiff import checkpoint
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh
from jaxdiff.training.compiled import State, compile_init, trained


def read_snapshot(folder: str | Path, step: int, *, mesh: Mesh | None = None) -> Dictionary:
    """Reads the dictionary of a checkpoint, also beside a training that goes on.

    Args:
        folder: Folder given to `train`.
        step: Steps done; one that `train.keep_every` keeps [steps].
        mesh: Where its arrays go; one device when None.

    Returns:
        The dictionary in the normalised space, its threshold not calibrated.

    Raises:
        JaxdiffError: If there is no such checkpoint, or it is damaged.
    """
    mesh = make_mesh(1, 1) if mesh is None else mesh
    folder = Path(folder) / "checkpoints"
    config, shape = DictionaryConfig(), (0, 0)

    def like(record: dict[str, Any]) -> State:
        nonlocal config, shape
        config = DictionaryConfig(**record["settings"]["dictionary"])
        train = TrainConfig(**record["settings"]["train"] | {"step": record["step"]})
        shape = (record["shape"][0], record["shape"][1])
        return compile_init(config, train, shape, mesh)[1]

    found = checkpoint.restore(folder, like, step)
    if found is None:
        there = ", ".join(str(known) for known in checkpoint.steps(folder)) or "none"
        raise JaxdiffError(
            f"there is no checkpoint of step {step}: {there} kept",
            where=folder,
            fix="set train.keep_every before training to keep more",
        )
    return trained(found[1], config, shape, mesh)
