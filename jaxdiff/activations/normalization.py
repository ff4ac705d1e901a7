"""Mean and scale of activations per model, gathered in one pass."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxdiff.dictionaries.normalization import Normalization


@dataclass(frozen=True)
class Moments:
    """First and second moment of the rows seen so far, in float64 on the host.

    Attributes:
        count: Rows.
        mean: Mean of each coordinate; zeros before the first row.
        m2: Sum over rows and coordinates of `(x - mean)^2`.
    """

    count: int
    mean: Float[np.ndarray, "M D"]
    m2: Float[np.ndarray, " M"]

    @staticmethod
    def zeros(shape: tuple[int, int]) -> "Moments":
        """Returns the moments of no rows."""
        return Moments(0, np.zeros(shape), np.zeros(shape[0]))

    @staticmethod
    def of(x: Float[np.ndarray, "R M D"], mask: Bool[np.ndarray, " R"]) -> "Moments":
        """Returns the moments of the rows whose mask is True."""
        rows = x[mask].astype(np.float64)
        if not len(rows):
            return Moments.zeros((x.shape[1], x.shape[2]))
        mean = rows.mean(axis=0)
        return Moments(len(rows), mean, np.square(rows - mean[None]).sum(axis=(0, 2)))

    def merge(
        self,
        count: Float[np.ndarray, " N"],
        mean: Float[np.ndarray, "N M D"],
        m2: Float[np.ndarray, "N M"],
    ) -> "Moments":
        """Returns the moments of these rows and of N further groups of rows.

        The pairwise update of Chan, Golub and LeVeque (1979), for N + 1 groups at once: no sum of
        squares is ever subtracted from another, so large means cost no precision.
        """
        n = np.concatenate([[float(self.count)], count.astype(np.float64)])
        means = np.concatenate([self.mean[None], mean.astype(np.float64)])
        total = n.sum()
        if total == 0:
            return self
        center = np.einsum("n,nmd->md", n, means) / total
        between = np.einsum("n,nmd->m", n, np.square(means - center[None]))
        return Moments(int(total), center, self.m2 + m2.astype(np.float64).sum(axis=0) + between)

    def normalization(self) -> Normalization:
        """Returns the shift and scale; a model without variance gets scale 1."""
        d = self.mean.shape[1]
        variance = self.m2 / max(self.count, 1) / d
        scale = [1 / math.sqrt(v) if v > 0 else 1.0 for v in variance]
        return Normalization(self.mean.astype(np.float32), np.asarray(scale, np.float32))

    def to_json(self) -> dict[str, Any]:
        """Returns plain lists and numbers, exact to the last bit."""
        return {"count": self.count, "mean": self.mean.tolist(), "m2": self.m2.tolist()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Moments":
        """Returns what `to_json` was called on."""
        return Moments(data["count"], np.array(data["mean"], float), np.array(data["m2"], float))
