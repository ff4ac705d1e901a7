"""The whole sharded programs, compiled by the TPU compiler; no TPU is needed."""

import pytest

from jaxdiff import cli, config, estimate
from jaxdiff.config import DictionaryConfig, TrainConfig

pytestmark = pytest.mark.tpu

WIDTH, LATENTS = 2304, 73_728
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
