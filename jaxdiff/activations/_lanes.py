"""Batches put together from lanes: streams of rows that can be read by different processes."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from jaxdiff.activations._deal import Dealer
from jaxdiff.activations.rows import concatenate
from jaxdiff.errors import JaxdiffError
from jaxdiff.types import ActivationBatch


class Lanes:
    """An iterator of this process's rows of each batch.

    A batch is as many rows of each lane, one lane after the other. How many lanes there are does
    not depend on the hardware, and so neither does the order of rows; a process runs those lanes
    only that it needs rows of.

    Args:
        lanes: The lanes that are needed, by number.
        rows: Which of their rows make this process's part of a batch; all when None.
    """

    def __init__(self, lanes: Mapping[int, Dealer], rows: Int[np.ndarray, " R"] | None = None):
        self._lanes = lanes
        self._rows = rows

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self

    def __next__(self) -> ActivationBatch:
        batch = concatenate([next(lane) for lane in self._lanes.values()])
        if (rows := self._rows) is None:
            return batch
        return jax.tree.map(lambda a: np.take(a, rows, axis=0), batch)

    def get_state(self) -> dict[str, Any]:
        """Returns the positions of the lanes after the last batch, as JSON, by lane."""
        return {f"lane {i}": lane.get_state() for i, lane in self._lanes.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to positions that `get_state` returned, of these lanes and maybe of others.

        Raises:
            JaxdiffError: If the position of a lane is missing.
        """
        missing = [f"lane {i}" for i in self._lanes if f"lane {i}" not in state]
        if missing:
            raise JaxdiffError(
                f"the checkpoint does not have the position of {', '.join(missing)} in the store",
                where="checkpoints",
                fix="it is of another store, batch or version; delete it to start over",
            )
        for i, lane in self._lanes.items():
            lane.set_state(state[f"lane {i}"])
