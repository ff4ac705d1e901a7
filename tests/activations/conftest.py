"""Two tiny models and documents for them."""

import jax
import numpy as np
import pytest

from jaxdiff.activations import ModelPair
from jaxdiff.config import HarvestConfig
from jaxdiff.models import ModelConfig, init
from jaxdiff.types import ActivationBatch, TokenBatch

VOCAB, WIDTH, CONTEXT = 40, 8, 12
SITE = "blocks.1.resid_post"


def tiny(seed: int, **changes):
    spec = ModelConfig(
        **{"vocab_size": VOCAB, "d_model": WIDTH, "n_layers": 3, "n_heads": 2, "d_mlp": 16}
        | changes
    )
    return init(spec, key=jax.random.key(seed))


def documents(n: int, batch: int = 4, seed: int = 0) -> list[TokenBatch]:
    """Returns padded rows of one document each, of 3 to CONTEXT tokens."""
    rng = np.random.default_rng(seed)
    at = np.arange(CONTEXT)[None]
    out = []
    for first in range(0, n, batch):
        index = np.arange(first, first + batch)[:, None]
        length = rng.integers(3, CONTEXT + 1, (batch, 1)) * (index < n)
        valid = at < length
        out.append(
            TokenBatch(
                tokens=np.where(valid, rng.integers(0, VOCAB, valid.shape), 0),
                roles=np.where(valid, rng.integers(0, 5, valid.shape), 0),
                sequences=np.where(valid, index, -1),
                positions=np.where(valid, at, 0),
                labels=np.where(valid, rng.integers(0, 3, valid.shape), 0),
            )
        )
    return out


def random_rows(rows: int, shape=(2, 6), seed: int = 0, masked: float = 0.2) -> ActivationBatch:
    """Returns rows of which each is different, in documents of 7."""
    rng = np.random.default_rng(seed)
    index = np.arange(rows)
    return ActivationBatch(
        x=rng.normal(3.0, 2.0, (rows, *shape)).astype(np.float32),
        tokens=index.astype(np.int32),
        roles=(index % 5).astype(np.int8),
        sequences=(index // 7).astype(np.int32),
        positions=(index % 7).astype(np.int32),
        labels=(index % 3).astype(np.int32),
        mask=rng.random(rows) >= masked,
    )


@pytest.fixture(scope="session")
def pair():
    return ModelPair((tiny(0), tiny(1)))


@pytest.fixture
def config():
    return HarvestConfig(dtype="float32", chunk=16, ring=64, outlier=None)
