"""A random dictionary as training has it, and its loss, for the tests of variants."""

import functools
import importlib.util
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import DictionaryConfig
from jaxdiff.dictionaries import init, loss
from jaxdiff.dictionaries.constraints import release

SOURCES, WIDTH, LATENTS, BATCH = 2, 5, 12, 30


def problem(sources=SOURCES, seed=0, **settings):
    """Returns settings, random parameters in the form that training moves, and a batch."""
    config = DictionaryConfig(latents=LATENTS, same_init=False, **{"k": 3, **settings})
    rng = np.random.default_rng(seed)
    d = release(init(config, (sources, WIDTH), key=jax.random.key(seed)), config)
    leaves, structure = jax.tree.flatten(d)
    noise = [rng.normal(scale=0.3, size=a.shape).astype(np.float32) for a in leaves]
    moved = [jnp.asarray(np.asarray(a) + e) for a, e in zip(leaves, noise, strict=True)]
    x = rng.normal(size=(BATCH, sources, WIDTH)).astype(np.float32)
    return config, jax.tree.unflatten(structure, moved), jnp.asarray(x)


def loss_of(config, d, x, *, l1=0.1, idle=0):
    """Returns the parts of the loss and its gradient."""
    objective = functools.partial(loss, config=config)
    (_, parts), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(
        d,
        x,
        k=jnp.float32(config.k),
        l1=jnp.float32(l1),
        idle=jnp.full(config.latents, idle, jnp.int32),
    )
    return parts, gradient


def float64(tree):
    """Returns the arrays of a dictionary by name, in float64."""
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip")
    found = {name: getattr(tree, name) for name in names}
    return {name: np.asarray(a, np.float64) for name, a in found.items() if a is not None}


def close(found, expected, tolerance=2e-5):
    """Asserts that two arrays agree, relative to the largest entry."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-6)


@pytest.fixture(scope="session")
def variant():
    """What the tests of variants share."""
    return SimpleNamespace(
        problem=problem, loss_of=loss_of, float64=float64, close=close, latents=LATENTS
    )


@pytest.fixture(scope="session")
def memory():
    """The module of the tests of training with an in-memory source."""
    path = pathlib.Path(__file__).parents[2] / "training" / "memory_source.py"
    spec = importlib.util.spec_from_file_location("memory_source", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
