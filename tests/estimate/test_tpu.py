"""The whole sharded programs, compiled by the TPU compiler; no TPU is needed."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff import cli, config, estimate
from jaxdiff.activations.normalization import Normalization
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.estimate import analytic, programs
from jaxdiff.estimate.chips import CHIPS
from jaxdiff.estimate.topology import make_mesh
from jaxdiff.mesh import DATA, sharding
from jaxdiff.training.compiled import compile_init

pytestmark = pytest.mark.tpu

WIDTH, LATENTS = 2304, 73_728
# Of the sparse step, which takes long to compile.
ROWS, NARROW = 512, 128
_GIB = 2**30


@pytest.fixture(autouse=True)
def compiler():
    return pytest.importorskip("libtpu")


def run_of() -> config.RunConfig:
    """Returns the paper's dictionary for Gemma 2 2B, as in the preset of that name."""
    preset = config.load("gemma2_2b_chat")
    return preset.model_copy(
        update={
            "dictionaries": {"it": DictionaryConfig(latents=LATENTS, k=100)},
            "train": TrainConfig(batch=2048, dtype="bfloat16"),
        }
    )


@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:4x4x4", "v6e:2x2"])
def test_memory_of_the_full_sharded_step(name):
    topology = estimate.parse(name)
    found = estimate.estimate(run_of(), topology, width=WIDTH)
    step = found.stages["train it"]
    memory, devices = step.costs.memory, topology.devices
    assert found.compiled and step.costs.fault is None and step.fits
    # Parameters are where they are split to, and nothing of their size is gathered.
    parameters = 4 * (2 * 2 * WIDTH * LATENTS + LATENTS) / devices
    assert memory["parameters"] == pytest.approx(parameters, rel=0.02)
    assert memory["moments"] == pytest.approx(2 * parameters, rel=0.02)
    largest = {"v5e:2x2": 6, "v6e:2x2": 6, "v5p:4x4x4": 1}[name]
    assert step.memory < largest * _GIB
    # Only activations and counts cross devices: a few times the batch, never the parameters.
    batch = 2048 * 2 * WIDTH * 4
    sent = sum(volume.bytes for volume in step.costs.collectives.values())
    assert batch <= sent < 6 * batch
    assert step.costs.optimal_seconds is None or 0 < step.costs.optimal_seconds < 1


def sparse_step_of(name: str, **dictionary):
    """Returns the run and its step; lists and rows are short, since compilation takes long."""
    update = {
        "dictionaries": {"it": DictionaryConfig(latents=LATENTS, k=8, **dictionary)},
        "train": TrainConfig(batch=ROWS, dtype="bfloat16", beta1=0, step="sparse"),
    }
    run = config.load("gemma2_2b_chat").model_copy(update=update)
    step = estimate.estimate(run, estimate.parse(name), width=NARROW).stages["train it"]
    assert step.costs.fault is None and step.step and step.step.name == "sparse"
    memory, devices = step.costs.memory, estimate.parse(name).devices
    parameters = 4 * 2 * 2 * NARROW * LATENTS / devices
    assert memory["parameters"] == pytest.approx(parameters, rel=0.02)
    assert memory["moments"] == pytest.approx(parameters, rel=0.02)
    # The reconstruction, and that of dead latents; counts are small.
    sent = sum(volume.bytes for volume in step.costs.collectives.values())
    reconstruction = ROWS * 2 * NARROW * 4
    assert reconstruction <= sent < 2.2 * reconstruction
    return run, step


@pytest.mark.parametrize(
    "name, activation, most",
    [
        ("v6e:2x2", "batch_topk", 34),
        ("v5p:4x4x4", "topk", 18),
        ("v5p:4x4x4", "relu", 24),
        ("v5p:4x4x4", "jumprelu", 24),
    ],
)
def test_sparse_steps_compile(name, activation, most):
    """Temporaries in MiB; on v6e a device's scores alone would be 36."""
    _, step = sparse_step_of(name, activation=activation, bandwidth=0.1)
    assert 0 < step.costs.memory["temporaries"] < most * 2**20


def test_the_sparse_step_holds_no_scores():
    run, step = sparse_step_of("v5e:2x2")
    memory = step.costs.memory
    # A fifth of what the scores of a device's latents would take as floats.
    assert 0 < memory["temporaries"] < ROWS * LATENTS / 4 * 4 / 5
    # What follows the data is counted by formulas. Of memory, they see nothing that stays on chip.
    assert step.costs.counted == "formulas" and step.costs.optimal_seconds is None
    given = run.dictionaries["it"], run.train, (2, NARROW), "bfloat16"
    model = analytic.train_costs(*given, (1, 4), CHIPS["v5e"])
    assert memory["temporaries"] < model.memory["temporaries"]
    assert (step.costs.flops, step.costs.bytes) == (model.flops, model.bytes)


def test_the_first_state_takes_its_parameters_again():
    topology, shape = estimate.parse("v5e:2x2"), (2, WIDTH)
    mesh = make_mesh(topology, (1, 4))
    train = TrainConfig(batch=512, beta1=0, step="sparse")
    start, like = compile_init(DictionaryConfig(latents=LATENTS), train, shape, mesh)
    x = jax.ShapeDtypeStruct((512, *shape), jnp.float32, sharding=sharding(mesh, DATA))
    key = jax.eval_shape(lambda: jax.random.key(0))
    used = start.lower(x, Normalization.identity(shape), key=key).compile().memory_analysis()
    parameters = programs.state_memory(like)["parameters"]
    assert 0.5 * parameters < used.temp_size_in_bytes < 1.2 * parameters


def test_a_step_that_the_compiler_refuses(capsys):
    words = ["estimate", "gemma2_2b_chat", "--topology", "v5e:1x1", "--width", str(WIDTH)]
    assert cli.main([*words, "--train.batch", "8192"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "compiled for it" in out and "NO" in out
    assert "the compiler needs" in out and "analytical model" in out


def test_the_harvest_compiles():
    found = estimate.estimate(config.load("quickstart"), estimate.parse("v5e:2x2"))
    step = found.stages["harvest"]
    assert step.fits and step.costs.tokens == 32 * 128
    assert step.costs.collectives["all-gather"].count > 3
    # The compiler's operations are those of the model by formula.
    model = estimate.estimate(config.load("quickstart"), estimate.parse("h100:4"))
    assert step.costs.flops == pytest.approx(model.stages["harvest"].costs.flops, rel=0.2)
