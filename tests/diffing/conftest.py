"""Data with known truth: crosscoders.md 8.1, with the dictionary that generated it."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.dictionaries import Dictionary
from jaxdiff.types import ActivationBatch

# Gain of each concept in (base, ft).
GAINS = {"shared": (1.0, 1.0), "weak": (0.35, 1.0), "ft_only": (0.0, 1.0), "base_only": (1.0, 0.0)}


@pytest.fixture(scope="session")
def planted():
    return make_planted


def make_planted(
    kinds=("shared", "weak", "ft_only", "base_only"),
    *,
    each=2,
    width=32,
    rows=6000,
    length=30,
    p=0.12,
    noise=0.02,
    seed=0,
):
    """Concepts on orthonormal directions, Bernoulli(p) x uniform(0.5, 1.5); every model sees them.

    The encoder reads both models, so that f is the concept's magnitude (up to noise) at every gain.
    """
    rng = np.random.default_rng(seed)
    names = [kind for kind in kinds for _ in range(each)]
    concepts = len(names)
    directions = np.linalg.qr(rng.normal(size=(width, concepts)))[0].T
    gains = np.array([GAINS[name] for name in names])  # [L, M]
    on = rng.random((rows, concepts)) < p
    magnitude = on * rng.uniform(0.5, 1.5, (rows, concepts))
    W_dec = gains[:, :, None] * directions[:, None, :]
    x = np.einsum("rl,lmd->rmd", magnitude, W_dec)
    x += noise * rng.normal(size=x.shape)
    # pre = sum_m g_m <x^m, d> / sum_m g_m^2 gives back the magnitude.
    W_enc = np.moveaxis(W_dec / (gains**2).sum(1)[:, None, None], 0, 2)
    dictionary = Dictionary(
        W_enc=jnp.asarray(W_enc, jnp.float32),
        b_enc=jnp.full(concepts, -0.2, jnp.float32),
        W_dec=jnp.asarray(W_dec, jnp.float32),
        b_dec=jnp.zeros((2, width)),
        threshold=jnp.zeros(()),
        activation="relu",
        k=1.0,
        code_norm="crosscoder",
    )
    return SimpleNamespace(
        names=np.array(names), on=on, dictionary=dictionary, batch=make_batch(x, length=length)
    )


@pytest.fixture(scope="session")
def batch_of():
    return make_batch


def make_batch(x, *, length=30, **fields):
    rows = len(x)
    base = {
        "x": np.asarray(x, np.float32),
        "tokens": np.arange(rows, dtype=np.int32) % 97,
        "roles": np.full(rows, 4, np.int32),
        "sequences": (np.arange(rows) // length).astype(np.int32),
        "positions": (np.arange(rows) % length).astype(np.int32),
        "labels": np.zeros(rows, np.int32),
        "mask": np.ones(rows, bool),
    }
    return ActivationBatch(**{**base, **fields})
