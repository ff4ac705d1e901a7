"""Two and four processes train what one does, and go on where any number of them stopped."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdiff.activations import Recorded, write_store
from jaxdiff.config import HarvestConfig
from jaxdiff.dictionaries import load

SCRIPT = Path(__file__).with_name("train_in_processes.py")
KINDS = ("dense", "sparse")


@pytest.fixture(scope="module")
def store(memory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    rows = memory.batch_of(memory.gaussian_source(rows=700).x)
    config = HarvestConfig(dtype="float32", chunk=32, outlier=None)
    write_store(folder, Recorded([rows], site="site"), config=config)
    return folder


@pytest.fixture(scope="module")
def run(in_processes):
    """Runs `count` processes that together have four devices."""

    def run(store: Path, out: Path, count: int, death: int = 0) -> None:
        out.mkdir(exist_ok=True)

        def words(i, port):
            return [SCRIPT, store, out, *map(str, (4 // count, i, count, port, death))]

        codes, text = in_processes(count, words, out)
        assert all(codes) if death else not any(codes), text

    return run


@pytest.fixture(scope="module")
def alone(run, store, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    run(store, out, 1)
    return out


def history(folder: Path) -> dict[str, np.ndarray]:
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    return {name: np.array([line[name] for line in lines]) for name in ("loss", "l0", "dead")}


def assert_the_same(out: Path, alone: Path, count: int) -> None:
    """Sums across processes are added in another order: losses agree to 1e-5, sets exactly."""
    for kind in KINDS:
        want, got = history(alone / kind), history(out / kind)
        np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-5)
        for name in ("l0", "dead"):
            np.testing.assert_array_equal(got[name], want[name])
        one, other = load(alone / kind), load(out / kind)
        pairs = zip(jax.tree.leaves(other), jax.tree.leaves(one), strict=True)
        for mine, wanted in pairs:
            np.testing.assert_allclose(mine, wanted, rtol=1e-3, atol=1e-4)
        sets = [np.load(out / f"{kind}-active-{i}.npy") for i in range(count)]
        for active in sets:
            np.testing.assert_array_equal(active, np.load(alone / f"{kind}-active-0.npy"))
        settings = [json.loads((f / kind / "dictionary.json").read_text()) for f in (alone, out)]
        for name in ("l0", "fve_all", "dead", "tokens"):
            one, other = (s["evaluation"][name] for s in settings)
            assert other == pytest.approx(one, rel=1e-5)


def test_processes_train_what_one_does(run, store, alone, tmp_path):
    run(store, tmp_path, 2)
    assert_the_same(tmp_path, alone, 2)


def test_a_run_goes_on_with_another_number_of_processes(run, store, alone, tmp_path):
    run(store, tmp_path, 2, death=13)
    assert (tmp_path / "dense" / "checkpoints").is_dir()
    run(store, tmp_path, 4)
    assert_the_same(tmp_path, alone, 4)
