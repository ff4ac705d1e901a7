"""Two tiny models, documents for them, and rows that need no model."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.activations import ModelPair
from jaxdiff.config import HarvestConfig
from jaxdiff.models import LM, ModelConfig
from jaxdiff.models._lm import abstract
from jaxdiff.types import ActivationBatch, TokenBatch

VOCAB, WIDTH, CONTEXT = 40, 8, 12


def _tiny(seed: int, **changes):
    spec = ModelConfig(
        **{"vocab_size": VOCAB, "d_model": WIDTH, "n_layers": 3, "n_heads": 2, "d_mlp": 16}
        | changes
    )
    # Random weights by NumPy: `init` would compile a program for each structure.
    graphdef, shapes = abstract(spec)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.5, a.shape), a.dtype), shapes)
    return LM(params=params, graphdef=graphdef, spec=spec)


def _documents(n: int, batch: int = 4, seed: int = 0) -> list[TokenBatch]:
    rng = np.random.default_rng(seed)
    at = np.arange(CONTEXT)[None]
    out = []
    for first in range(0, n, batch):
        index = np.arange(first, first + batch)[:, None]
        length = rng.integers(3, CONTEXT + 1, (batch, 1)) * (index < n)
        valid = at < length
        draws = [rng.integers(0, high, valid.shape) for high in (VOCAB, 5, 3)]
        tokens, roles, labels = (np.where(valid, d, 0).astype(np.int32) for d in draws)
        sequences = np.where(valid, index, -1).astype(np.int32)
        positions = np.where(valid, at, 0).astype(np.int32)
        out.append(TokenBatch(tokens, roles, sequences, positions, labels))
    return out


def _rows(rows: int, shape=(2, 6), seed: int = 0, masked: float = 0.2) -> ActivationBatch:
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


def _split(batch: ActivationBatch, *at: int) -> list[ActivationBatch]:
    edges = [0, *at, len(batch.tokens)]
    return [
        jax.tree.map(lambda a, i=i, j=j: a[i:j], batch)
        for i, j in zip(edges, edges[1:], strict=False)
    ]


def _join(batches) -> ActivationBatch:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def _tree(folder) -> dict[str, str]:
    """Returns a hash of every file under a folder."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def _equal(a: ActivationBatch, b: ActivationBatch) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


@pytest.fixture(scope="session")
def tiny():
    """Makes a model of random weights."""
    return _tiny


@pytest.fixture(scope="session")
def documents():
    """Makes padded rows of one document each, of 3 to 12 tokens."""
    return _documents


@pytest.fixture(scope="session")
def rows():
    """Makes rows of which no two are alike, in documents of 7; tokens are row numbers."""
    return _rows


@pytest.fixture(scope="session")
def split():
    """Cuts a batch at row numbers."""
    return _split


@pytest.fixture(scope="session")
def join():
    """Puts batches together."""
    return _join


@pytest.fixture(scope="session")
def tree():
    """Hashes the files under a folder."""
    return _tree


@pytest.fixture(scope="session")
def equal():
    """Compares two batches bit by bit."""
    return _equal


@pytest.fixture(scope="session")
def pair():
    return ModelPair((_tiny(0), _tiny(1)))


@pytest.fixture
def site():
    return "blocks.1.resid_post"


@pytest.fixture
def config():
    return HarvestConfig(dtype="float32", chunk=16, ring=64, outlier=None)
