"""Putting rows of activations together."""

from collections.abc import Sequence

import jax
import numpy as np

from jaxdiff.types import ActivationBatch


def concatenate(batches: Sequence[ActivationBatch]) -> ActivationBatch:
    """Returns the rows of all batches, in order; the batch itself, uncopied, when there is one."""
    if len(batches) == 1:
        return batches[0]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
