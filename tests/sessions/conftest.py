"""Two tiny models that differ, and what a session asks of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.edits import Add, Last, Mean, PerLayer, Project, Set, edit
from jaxdiff.models import LM, ModelConfig, Rope, Tap
from jaxdiff.models._lm import abstract
from jaxdiff.sessions import Average, Captured, Difference, PerRow, session, step

SPEC = ModelConfig(
    vocab_size=11, d_model=8, n_layers=2, n_heads=2, d_mlp=12, rope=Rope(theta=100.0), tied=False
)
STREAM, INTO = "blocks.*.resid_post", "blocks.*.mlp_out"


def _model(seed):
    rng = np.random.default_rng(seed)
    graphdef, shapes = abstract(SPEC)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0.2, 0.5, a.shape), a.dtype), shapes)
    return LM(params=params, graphdef=graphdef, spec=SPEC)


@pytest.fixture(scope="session")
def lms():
    return {"base": _model(0), "ft": _model(1)}


@pytest.fixture(scope="session")
def texts():
    warm, cold, prompts = np.random.default_rng(2).integers(0, 11, (3, 3, 5)).astype(np.int32)
    return warm, cold[:2], prompts


@pytest.fixture(scope="session")
def make():
    """Makes a session that uses every kind of value, of both models."""

    def job(warm, cold, prompts, strength=2.0):
        last = Tap(STREAM, reduce=Last(), name="last")
        vector = Difference(*(Average(Captured(name, "last"), axis=1) for name in ("warm", "cold")))
        steer = edit(STREAM, PerLayer(Add(vector, np.full(2, strength, np.float32))), layers=1)
        patch = edit(INTO, PerLayer(Set(PerRow(Captured("warm", "mean"), axis=1))), positions=[1])
        probe = Tap(STREAM, reduce=Project(Captured("cold", "embed")), name="probe")
        return session(
            (
                step("warm", "base", warm, taps=(last, Tap(INTO, reduce=Mean(), name="mean"))),
                step("cold", "base", cold, taps=(last, Tap("embed", reduce=Last()))),
                step("steered", "ft", prompts, (probe,), (steer, patch), logits="last"),
            ),
            keep=(Captured("steered", "logits"), vector, Captured("steered", "probe")),
        )

    return job
