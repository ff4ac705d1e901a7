"""Variants give the same parameters on one and on eight devices."""

import jax
import numpy as np
import pytest

from jaxdiff.activations.normalization import Normalization
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.mesh import make_mesh
from jaxdiff.training import compiled

SHAPE, BATCH = (2, 6), 32
CASES = {
    "gated, tied, nested, dedicated": {
        **{"activation": "gated", "tied": True, "prefixes": (5,), "dedicated": (3, 3)},
    },
    "jumprelu, shared, cross": {
        **{"activation": "jumprelu", "shared": 6, "loss": "mse", "cross": -0.5},
        **{"shared_penalty": 0.2, "pre_penalty": 0.01, "threshold": 0.3},
    },
    "transcoder with a skip": {"reads": (0,), "writes": (1,), "skip": True, "dead_after": 40},
    "group max": {"activation": "group_max", "k": 4, "dead_after": 40},
}


def run(config, mesh):
    train = TrainConfig(steps=10, batch=BATCH, lr=1e-2, warmup=2)
    start, like = compiled.compile_init(config, train, SHAPE, mesh)
    step = compiled.compile_step(config, train, like, mesh)
    shift, state = Normalization.identity(SHAPE), None
    for i in range(3):
        x = np.random.default_rng(i).normal(size=(BATCH, *SHAPE)).astype(np.float32)
        x = compiled.put(x, mesh)
        state = start(x, shift, key=jax.random.key(0)) if state is None else state
        state, _ = step(state, x, shift)
    return compiled.trained(state, config, SHAPE, mesh)


@pytest.mark.parametrize("name", CASES)
def test_same_on_one_and_on_eight_devices(name):
    config = DictionaryConfig(**{"latents": 16, "k": 2, "same_init": False} | CASES[name])
    alone, spread = (run(config, make_mesh(*shape)) for shape in ((1, 1), (2, 4)))
    assert len(spread.W_dec.sharding.device_set) == 8
    assert jax.tree.structure(spread) == jax.tree.structure(alone)
    for a, b in zip(jax.tree.leaves(spread), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
