"""What sparse steps hold on a CPU, as the compiler counts it."""

import pytest

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.estimate import programs
from jaxdiff.mesh import make_mesh


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_one_array_is_as_large_as_the_scores(activation):
    """The encoder's product; also where dead latents are many or a penalty leaves many active."""
    rows, latents = 256, 32_768
    config = DictionaryConfig(latents=latents, k=4, activation=activation, l1=0.1)
    train = TrainConfig(batch=rows, beta1=0, step="sparse")
    memory = programs.train_costs(config, train, (1, 8), "float32", make_mesh(1, 1)).memory
    product = 4 * rows * latents
    assert product <= memory["temporaries"] < 2 * product
