"""The space that a dictionary is trained in: activations shifted and scaled, model by model."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float

from jaxdiff.types import HostOrDevice


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normalization:
    """Shift and scale that give each model zero mean and unit mean square per coordinate.

    One scalar per model, so that the relative variance of coordinates stays (dictionary_learning's
    `NormalizableMixin` does the same with another target).

    Attributes:
        mean: Mean of each coordinate.
        scale: `1 / sqrt(E ||x - mean||^2 / D)`.
    """

    mean: Float[HostOrDevice, "M D"]
    scale: Float[HostOrDevice, " M"]

    def apply(self, x: Float[HostOrDevice, "R M D"]) -> Float[HostOrDevice, "R M D"]:
        """Returns `(x - mean) * scale` in float32, whatever the dtype of `x`."""
        return (x.astype(np.float32) - self.mean[None]) * self.scale[None, :, None]

    def invert(self, x: Float[HostOrDevice, "R M D"]) -> Float[HostOrDevice, "R M D"]:
        """Returns `x / scale + mean` in float32: the inverse of `apply`."""
        return x.astype(np.float32) / self.scale[None, :, None] + self.mean[None]

    @staticmethod
    def identity(shape: tuple[int, int]) -> "Normalization":
        """Returns the normalisation of `[M, D]` activations that changes nothing."""
        return Normalization(np.zeros(shape, np.float32), np.ones(shape[:1], np.float32))
