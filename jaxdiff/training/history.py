"""Metrics of a run: one JSON line for each logged step, without gaps or repeats after a restart."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff.manifest import write_atomically
from jaxdiff.training.step import Info

NAME = "history.jsonl"
WAITED = "waited"
"""Part of the time that the devices waited for activations; in the file only [fraction]."""


def record(step: int, tokens: int, info: Info) -> dict[str, Any]:
    """Fetches a step's metrics from the device; numbers that are not finite become None."""
    values = {name: np.asarray(v).tolist() for name, v in jax.device_get(info)._asdict().items()}
    del values["bad"]  # A step on a bad batch has no metrics.
    return {"step": step, "tokens": tokens} | {name: _finite(v) for name, v in values.items()}


def append(folder: Path, line: dict[str, Any]) -> None:
    """Adds one line to the history on disk."""
    if jax.process_index() == 0:
        with (folder / NAME).open("a") as file:
            file.write(json.dumps(line) + "\n")


def rewind(folder: Path, step: int) -> list[dict[str, Any]]:
    """Returns the lines up to a step and drops the later ones, which will be written again.

    What is only in the file, because another run would measure something else, is not returned.
    """
    path = folder / NAME
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break  # A line that was being written when the process died.
    kept = [line for line in lines if line["step"] <= step]
    if jax.process_index() == 0:
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
    return [{name: v for name, v in line.items() if name != WAITED} for line in kept]


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value if not isinstance(value, float) or np.isfinite(value) else None
