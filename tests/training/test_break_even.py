"""The choice between the steps."""

import pytest

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh
from jaxdiff.training import break_even

SMALL = DictionaryConfig(latents=64, k=4)


def chosen(config=SMALL, **train):
    train = TrainConfig(batch=32, **({"beta1": 0.0} | train))
    return break_even.faster_step(config, train, (2, 8), make_mesh(1, 2))


@pytest.mark.parametrize(("dense", "sparse", "step"), [(1.0, 2.0, "dense"), (2.0, 1.0, "sparse")])
def test_auto_takes_the_faster_one(monkeypatch, dense, sparse, step):
    monkeypatch.setattr(break_even, "_times", lambda *_: (dense, sparse))
    assert chosen() == step
    assert chosen(step="sparse") == "sparse"
    assert chosen(step="dense") == "dense"


def test_times_are_measured():
    dense, sparse = break_even._times(64, 16, TrainConfig(batch=32), 128)
    assert dense > 0 and sparse > 0


def test_what_the_sparse_step_does_not_compute_is_dense():
    assert chosen(beta1=0.9) == "dense"
    assert chosen(SMALL.model_copy(update={"activation": "gated"})) == "dense"
    assert chosen(SMALL.model_copy(update={"code_norm": "decoupled"})) == "dense"


def test_a_sparse_step_that_cannot_be_is_refused():
    with pytest.raises(JaxdiffError, match="train.beta1 = 0.9"):
        chosen(beta1=0.9, step="sparse")
