"""A source of activations in memory, shared by the tests and by the process that is killed."""

import numpy as np

from jaxdiff.activations.normalization import Normalization
from jaxdiff.types import ActivationBatch


def batch_of(x, mask=None):
    zeros = np.zeros(len(x), np.int32)
    mask = np.ones(len(x), bool) if mask is None else mask
    return ActivationBatch(x, zeros, zeros, zeros, zeros, zeros, mask)


class MemorySource:
    def __init__(self, x, normalization=None):
        self.x = x
        self.shape = tuple(x.shape[1:])
        self.normalization = normalization or Normalization.identity(self.shape)

    def batches(self, batch, *, seed, epochs=None):
        return Batches(self.x, batch, seed)

    def in_order(self):
        yield batch_of(self.x)


class Batches:
    def __init__(self, x, batch, seed):
        self.x, self.batch, self.seed, self.at = x, batch, seed, 0

    def __iter__(self):
        return self

    def __next__(self):
        rng = np.random.default_rng((self.seed, self.at))
        self.at += 1
        return batch_of(self.x[rng.integers(0, len(self.x), self.batch)])

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


def gaussian_source(rows=512, models=2, width=6, seed=0):
    """Rows made of 8 sparse directions, with a mean and another scale in each model."""
    rng = np.random.default_rng(seed)
    codes = (rng.random((rows, 8)) < 0.2) * rng.uniform(0.5, 1.5, (rows, 8))
    x = np.einsum("rf,fmd->rmd", codes, rng.normal(size=(8, models, width)))
    mean = x.mean(axis=0)
    scale = 1 / np.sqrt(np.square(x - mean).mean(axis=(0, 2)))
    shift = Normalization(mean.astype(np.float32), scale.astype(np.float32))
    return MemorySource(x.astype(np.float32), shift)
