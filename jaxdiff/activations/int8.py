"""Activations in 8 bits: one scale for each row and model, the same steps for all coordinates."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Float32, Int8

from jaxdiff.types import ActivationBatch

_LARGEST = 127


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantised:
    """Rows as they are stored in int8; a pytree of arrays that begin with the rows.

    Attributes:
        values: Activations in units of `scale`.
        scale: One for each row and model.
        known: What is known about the rows; its own activations have width 0.
    """

    values: Int8[np.ndarray, "R M D"]
    scale: Float32[np.ndarray, "R M"]
    known: ActivationBatch


def quantise(x: Float[np.ndarray, "R M D"]) -> tuple[np.ndarray, np.ndarray]:
    """Returns int8 values and the scale of each row and model.

    The largest coordinate becomes 127 steps, so that no value is off by more than half a step:
    1/254 of it.

    Args:
        x: Finite activations.
    """
    x = np.asarray(x, np.float32)
    scale = np.max(np.abs(x), axis=-1) / np.float32(_LARGEST)
    safe = np.where(scale > 0, scale, np.float32(1))
    return np.rint(x / safe[:, :, None]).astype(np.int8), scale


def dequantise(
    values: Int8[np.ndarray, "R M D"], scale: Float32[np.ndarray, "R M"]
) -> Float32[np.ndarray, "R M D"]:
    """Returns the activations that are nearest to those that were quantised."""
    return np.multiply(values, scale[:, :, None], dtype=np.float32)
