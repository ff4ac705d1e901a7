"""The workloads, and what every library must return for each.

A library runs a case in one or more ways; each way is a call without arguments that returns numpy
arrays. `metric` is the logit of one token minus that of another, at the last position. N layers,
B sequences, T tokens, D width, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from subjects import Inputs, Shape

Outputs = tuple[np.ndarray, ...]
Ways = dict[str, Callable[[], Outputs]]

WORKLOADS = {
    "W0": "plain forward",  # logits [B, T, V]
    "W1": "capture resid_post of all layers",  # [N, B, T, D]
    "W2": "capture at a quarter of the depth and stop",  # [B, T, D]
    "W3": "patch one site",  # logits [B, T, V]
    "W4": "patch sweep, layers x positions",  # metric [N, T]
    "W5": "steered greedy generation",  # tokens [B, new]
    "W6": "gradients at resid_post of all layers",  # [N, B, T, D], of the sum of metrics
    "W7": "attribution patching, layers x positions",  # (clean - corrupt) . gradient, [N, T]
    "W8": "ablate SAE latents, keep the error",  # logits [B, T, V]
    "W9": "diff of two models",  # KL(base || ft) [B, T], cosine of resid_post [N, B, T]
}

CELL = "a forward a cell"
BATCHED = "cells are rows"
SUFFIX = "rows, from the patched layer on"
"""Ways of a sweep. The last shares what all rows have in common, where a library lets one."""
ROWS = 32
"""Rows of a sweep's batch: of 4 to 64, torch was fastest with 32 (tiny) and with all 16 (gpt2)."""


class Case(NamedTuple):
    """One workload at one batch size [sequences]."""

    workload: str
    batch: int

    def __str__(self) -> str:
        return f"{self.workload} B{self.batch}"


def cases(shape: Shape) -> tuple[Case, ...]:
    """Returns all cases, in the order in which they are run."""
    batches = {"W0": (1, 4), "W3": (1,), "W4": (1,), "W5": (1, 8), "W7": (1,)}
    return tuple(
        Case(workload, batch)
        for workload in WORKLOADS
        for batch in batches.get(workload, (shape.pairs if workload == "W9" else 4,))
    )


def quarter(shape: Shape) -> int:
    """Returns the layer after which a quarter of the blocks have run."""
    return max(shape.layers // 4 - 1, 0)


def middle(shape: Shape) -> int:
    """Returns the layer that is patched, steered and encoded."""
    return shape.layers // 2


class Subject(NamedTuple):
    """What a library is made from: two Hugging Face directories, sizes and inputs."""

    base: str
    ft: str
    shape: Shape
    inputs: Inputs


class Library:
    """A library with both models loaded.

    A workload is a method of its name in lower case, which takes the batch size and returns the
    ways of running it; a workload that a library has no means for is left out.
    """

    def ways(self, case: Case) -> Ways:
        """Returns the ways of running a case; none if the library cannot."""
        method = getattr(self, case.workload.lower(), None)
        return {} if method is None else method(case.batch)

    def compiles(self) -> int:
        """Returns how many programs the library has compiled; most compile none."""
        return 0
