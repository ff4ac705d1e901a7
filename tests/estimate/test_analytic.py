"""The analytical model against numbers by hand, and against programs compiled for the CPU."""

import jax
import pytest

from jaxdiff.config import DictionaryConfig, TrainConfig, load
from jaxdiff.estimate import _estimate, analytic, forward, programs
from jaxdiff.estimate.chips import CHIPS
from jaxdiff.estimate.collectives import Volume
from jaxdiff.estimate.costs import Costs, roofline
from jaxdiff.estimate.sources import sources
from jaxdiff.mesh import make_mesh

H100 = CHIPS["h100"]


def test_the_dense_step_by_hand():
    """B = 8 rows, M D = 6, L = 16 latents on 2 x 4 devices, no AuxK."""
    dictionary = DictionaryConfig(latents=16, k=2, aux=0)
    asked = dictionary, TrainConfig(batch=8), (2, 3), "bfloat16"
    found = analytic.train_costs(*asked, (2, 4), H100)
    parameters = 2 * 6 * 4 + 4 + 6
    # A threshold, Adam's count, steps done, L1 weight and its controller: a number each.
    assert 0 <= found.memory["parameters"] - 4 * parameters <= 8
    assert 0 <= found.memory["moments"] - 8 * parameters <= 24
    assert 0 <= found.memory["counters"] - 16 <= 32
    assert found.memory["inputs"] == found.memory["next batch"] == 4 * 6 * 2
    assert found.flops == 5 * 2 * 4 * 6 * 4
    # The reconstruction over 4 devices, gradients over 2.
    size = 4 * 6 * 4
    assert found.collectives["all-reduce"] == Volume(
        5, size + 4 * (parameters + 1), size * 1.5 + 4 * (parameters + 1), 4
    )


def test_the_sparse_step_by_hand():
    dictionary = DictionaryConfig(latents=16, k=2)
    types = {"moment_dtype": "bfloat16", "dtype": "bfloat16"}
    train = TrainConfig(batch=8, beta1=0, step="sparse", **types)
    found = analytic.train_costs(dictionary, train, (2, 3), "bfloat16", (2, 2), H100)
    parameters = 2 * 6 * 4 + 4 + 6
    # Squared norms of encoder rows, and of decoder rows in both models, come on top.
    assert found.memory["parameters"] == 4 * parameters + 4 * 3 * 4
    assert found.memory["moments"] == 2 * parameters
    assert found.memory["inputs"] == found.memory["next batch"] == 4 * 6 * 2
    # The encoder's product with the whole batch, and 8 passes over a quarter of 16 entries.
    assert found.flops == 2 * 8 * 6 * 4 + 8 * 2 * 4 * 6
    assert found.collectives == {
        "all-reduce": Volume(1, 8 * 6 * 4, 8 * 6 * 4 * 1.5, 4),
        "all-gather": Volume(1, 8 * 6 * 2, 8 * 6, 2),
    }


def test_a_penalised_step_follows_a_list_once_it_holds_the_active_entries():
    """Lists have a slot for 32 pairs of a row and a latent, so they hold an L0 of L / 32."""
    train = TrainConfig(batch=64, beta1=0, step="sparse")

    def flops(k):
        dictionary = DictionaryConfig(latents=1024, k=k, activation="relu")
        costs = analytic.train_costs(dictionary, train, (2, 64), "float32", (1, 1), H100)
        return costs.flops / (2 * 64 * 128 * 1024)

    # In units of one product with all latents: the encoder's, and 9 of a 1024th for each entry.
    assert flops(32) == pytest.approx(1 + 9 * 32 / 1024)
    assert flops(33) == pytest.approx(1 + 6)


@pytest.mark.parametrize("aux", [0.0, 1 / 32])
def test_the_dense_step_against_the_compiler(aux):
    """Operations within 15 %, traffic within 35 %, bytes and temporaries within a factor of 4."""
    dictionary = DictionaryConfig(latents=1024, k=8, aux=aux)
    train, sizes = TrainConfig(batch=256), (2, 4)
    asked = dictionary, train, (2, 128), "float32"
    model = analytic.train_costs(*asked, sizes, H100)
    real = programs.train_costs(*asked, make_mesh(*sizes))
    assert model.flops == pytest.approx(real.flops, rel=0.15)
    assert 1 / 4 < model.bytes / real.bytes < 4
    assert 1 / 4 < model.memory["temporaries"] / real.memory["temporaries"] < 4
    for cause in ("parameters", "moments"):
        assert model.memory[cause] == pytest.approx(real.memory[cause], rel=1e-3)
    sent, known = (c.collectives["all-reduce"].bytes for c in (model, real))
    assert sent == pytest.approx(known, rel=0.35)


def test_a_program_that_jaxlib_cannot_read_sends_what_formulas_say(monkeypatch):
    """TPU compilers of another version write what it does not know; the program itself is fine."""
    asked = DictionaryConfig(latents=64, k=4), TrainConfig(batch=16), (2, 8), "float32"

    def refused(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: async-update should have 1 operands")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", refused)
    real = programs.train_costs(*asked, make_mesh(1, 2))
    model = analytic.train_costs(*asked, (1, 2), H100)
    found = _estimate._checked(real, model)
    assert real.collectives is None and found.collectives == model.collectives
    assert found.memory == real.memory


def test_the_harvest_against_the_compiler():
    """Of two sites: work up to the later one, and a source for each model at each."""
    sites = {"site": "blocks.0.mlp_out, blocks.2.resid_post"}
    config = load("quickstart").model_copy(update=sites)
    given = sources(config)
    model = forward.harvest_costs(config, given, (2, 4))
    real = programs.harvest_costs(config, given, make_mesh(2, 4))
    assert model.flops == pytest.approx(real.flops, rel=0.15)
    assert model.memory["parameters"] == pytest.approx(real.memory["parameters"], rel=0.2)
    assert 1 / 3 < model.bytes / real.bytes < 3
    assert model.memory["outputs"] == pytest.approx(real.memory["outputs"], rel=0.1)
    assert model.tokens == real.tokens == 32 * 128


def test_operations_of_a_loop_over_blocks_are_those_of_each_block():
    """XLA counts a loop's inside once; the estimate has to grow with the depth all the same."""
    config, mesh = load("quickstart"), make_mesh(1, 1)

    def flops(site):
        given = sources(config.model_copy(update={"site": site}))
        return programs.harvest_costs(config, given, mesh).flops

    first, second = (flops(f"blocks.{i}.resid_post") for i in range(2))
    assert 1.9 * first < second < 2.2 * first
    # What is read on the way is computed anyway, and the block of the last site no further.
    assert flops("blocks.0.attn_out, blocks.2.resid_pre") == pytest.approx(second, rel=0.05)


def test_roofline_by_hand():
    volume = {"all-reduce": Volume(1, 600e9, 1200e9, 8)}
    costs = Costs({}, 459e12, 2765e9 * 2, 10, "bfloat16", volume)
    times = roofline(costs, CHIPS["v5p"])
    assert (times.compute, times.memory, times.network) == pytest.approx((1, 2, 2))
    exact = Costs({}, 459e12, 0.0, 10, "highest")
    assert roofline(exact, CHIPS["v5p"]).seconds == pytest.approx(6)
    # A device of a TPU7x is half of the chip.
    half = roofline(Costs({}, 2307e12, 0.0, 10, "default"), CHIPS["tpu7x"])
    assert (half.seconds, half.bound) == (pytest.approx(2), "compute")
    # More than eight GPUs are joined by their network adapters.
    far = {"all-reduce": Volume(1, 1.0, 50e9, 16)}
    assert roofline(Costs({}, 0.0, 0.0, 1, "default", far), CHIPS["h100"]).network == 1
