"""A random dictionary and random activations, with text and chats, masked rows and ragged docs."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.dictionaries import Dictionary
from jaxdiff.stats import encode
from jaxdiff.types import ActivationBatch

ROWS, LATENTS, WIDTH = 240, 12, 8


@pytest.fixture(scope="session")
def case():
    return make_case()


@pytest.fixture(scope="session")
def decoupled():
    return make_case(code_norm="decoupled")


def make_case(code_norm="crosscoder", seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    threshold = jnp.asarray([0.8, 1.6], jnp.float32) if code_norm == "decoupled" else jnp.float32(3)
    dictionary = Dictionary(
        W_enc=normal(2, WIDTH, LATENTS) / 4,
        b_enc=normal(LATENTS) / 10,
        W_dec=normal(LATENTS, 2, WIDTH) / 3,
        b_dec=normal(2, WIDTH) / 10,
        threshold=threshold,
        activation="batch_topk",
        k=3.0,
        code_norm=code_norm,
    )
    sequences = np.sort(rng.integers(0, 17, ROWS)).astype(np.int32) * 3 + 5
    batch = ActivationBatch(
        x=(2 * rng.normal(size=(ROWS, 2, WIDTH)) + 1).astype(np.float32),
        tokens=rng.integers(0, 50, ROWS).astype(np.int32),
        roles=rng.integers(0, 5, ROWS).astype(np.int32),
        sequences=sequences,
        positions=np.arange(ROWS, dtype=np.int32),
        labels=rng.integers(0, 3, ROWS).astype(np.int32),
        mask=rng.random(ROWS) < 0.9,
    )
    # What masked rows hold must not matter.
    batch.x[~batch.mask] = np.nan
    mean = rng.normal(size=(2, WIDTH)).astype(np.float32)
    space = {"mean": mean, "scale": np.array([0.5, 0.8], np.float32)}
    encoded = encode(
        dictionary,
        batch,
        jnp.arange(ROWS, dtype=jnp.int32),
        mean=jnp.asarray(mean),
        scale=jnp.asarray(space["scale"]),
    )
    return SimpleNamespace(dictionary=dictionary, batch=batch, space=space, encoded=encoded)
