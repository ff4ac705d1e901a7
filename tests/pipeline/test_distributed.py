"""A run on two processes, and what the command line says where they cannot find each other."""

import json
import os
import queue
import shutil

import jax
import numpy as np
import pytest

from jaxdiff import cli, config, pipeline
from jaxdiff.dictionaries import load
from jaxdiff.errors import JaxdiffError
from jaxdiff.pipeline._harvest import _token_batches

START = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
import jax
jax.config.update("jax_num_cpu_devices", 1)
from jaxdiff import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def written(tmp_path):
    """A config file of a run with little text, one small dictionary and few steps."""
    preset = config.load("quickstart").model_dump(mode="json")
    preset["text"] |= {"train_sequences": 60, "validation_sequences": 20, "test_sequences": 20}
    preset["harvest"] |= {"batch": 8, "chunk": 64}
    preset["dictionaries"] = {"d": preset["dictionaries"]["batch_topk"] | {"latents": 64}}
    preset["train"] |= {"steps": 30, "batch": 64, "warmup": 5, "log_every": 10}
    preset["diff"] |= {"bootstrap": 20, "examples": 2}
    preset |= {"null_pair": None, "out": str(tmp_path / "two"), "mesh": {"data": 2, "latent": 1}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(preset))
    return path


def test_two_processes_find_what_one_does(in_processes, written, tmp_path, capfd):
    def words(i, port):
        found = ["--coordinator", f"localhost:{port}", "--processes", "2", "--process", str(i)]
        return ["-c", START, "run", written, *found]

    codes, text = in_processes(2, words, tmp_path)
    assert codes == [0, 0], text
    assert ["numbers: " in said for said in text] == [True, False]  # One tells the results.

    # Another number of processes puts documents in a store in another order.
    for done in ("corpus", "main/harvest"):
        shutil.copytree(tmp_path / "two" / done, tmp_path / "one" / done)
    words = ["run", str(written), "--out", str(tmp_path / "one"), "--mesh.data", "1"]
    assert cli.main(words) == 0
    assert capfd.readouterr().err.count("done already") == 3
    trained = [load(tmp_path / out / "main/train/d") for out in ("two", "one")]
    for mine, wanted in zip(*map(jax.tree.leaves, trained), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-3, atol=1e-4)
    results = [json.loads((tmp_path / out / "results.json").read_text()) for out in ("two", "one")]
    two, one = (result["dictionaries"]["d"] for result in results)
    assert two["fve"] == pytest.approx(one["fve"], rel=1e-4)
    assert two["counts"] == one["counts"] and two["latent_scaling"] == one["latent_scaling"]
    assert (tmp_path / "two/report/index.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--coordinator", "localhost:1"], "--processes, --process are missing"),
        (["--processes", "2", "--process", "0"], "--coordinator is missing"),
        (["--distributed"], "this process cannot join the others"),
    ],
)
def test_processes_that_cannot_join(capsys, monkeypatch, words, message):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    assert cli.main(["train", "quickstart", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("processes", [1, 2])
def test_one_that_fails_does_not_wait_for_the_others_for_ever(monkeypatch, capsys, processes):
    left = queue.Queue()

    def fail(settings):
        raise JaxdiffError("no space left")

    monkeypatch.setattr(pipeline, "train", fail)
    monkeypatch.setattr(cli, "_GRACE", 0.0)
    monkeypatch.setattr(os, "_exit", left.put)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    assert cli.main(["train", "quickstart"]) == 2
    assert capsys.readouterr().err == "jaxdiff: no space left\n"
    if processes == 1:
        assert left.empty()
    else:
        assert left.get(timeout=60) == 2


def test_rows_of_text_that_processes_cannot_share(monkeypatch):
    settings = config.load("quickstart")
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(JaxdiffError, match="32 rows of text cannot be shared by 3 processes"):
        _token_batches(settings, settings.models, 0, 8)
