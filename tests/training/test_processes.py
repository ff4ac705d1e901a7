"""Two and four processes train what one does, and go on where any number of them stopped."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdiff import checkpoint
from jaxdiff.activations import Recorded, write_store
from jaxdiff.config import HarvestConfig
from jaxdiff.dictionaries import load

SCRIPT = Path(__file__).with_name("train_in_processes.py")


@pytest.fixture(scope="module")
def store(memory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    rows = memory.batch_of(memory.gaussian_source(rows=700).x)
    config = HarvestConfig(dtype="float32", chunk=32, outlier=None)
    write_store(folder, Recorded([rows], site="site"), config=config)
    return folder


@pytest.fixture(scope="module")
def alone(processes, store, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    processes.main(store, out, "nothing", "dense", "sparse")
    return out


def history(folder: Path) -> dict[str, np.ndarray]:
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    return {name: np.array([line[name] for line in lines]) for name in ("loss", "l0", "dead")}


def assert_the_same(out: Path, alone: Path, kind: str) -> None:
    """Sums across processes are added in another order: losses agree to 1e-5, sets exactly."""
    want, got = history(alone / kind), history(out / kind)
    np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-5)
    for name in ("l0", "dead"):
        np.testing.assert_array_equal(got[name], want[name])
    one, other = load(alone / kind), load(out / kind)
    for mine, wanted in zip(jax.tree.leaves(other), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-3, atol=1e-4)
    expected = np.load(alone / f"{kind}-active-0.npy")
    for i in range(2):
        np.testing.assert_array_equal(np.load(out / f"{kind}-active-{i}.npy"), expected)
    settings = [json.loads((f / kind / "dictionary.json").read_text()) for f in (alone, out)]
    for name in ("l0", "fve_all", "dead", "tokens"):
        one, other = (s["evaluation"][name] for s in settings)
        assert other == pytest.approx(one, rel=1e-5)


def test_a_run_goes_on_whatever_happens_to_its_processes(in_processes, store, alone, tmp_path):
    """Two are killed, of four that go on one gets SIGTERM, and two go on from there."""

    def run(count, *fate):
        def words(i, port):
            return [SCRIPT, store, tmp_path, *map(str, (4 // count, i, count, port)), *fate]

        return in_processes(count, words, tmp_path)

    codes, text = run(2, "killed", "dense")
    assert all(codes), text
    # As often as the first process's clock says, whatever the others' do.
    saved = checkpoint.steps(tmp_path / "dense" / "checkpoints")
    assert saved and set(saved) <= {3, 6, 9, 12}

    codes, text = run(4, "asked", "dense")
    assert codes == [143] * 4, text
    stopped = {re.search(r"preempted after step (\d+), which is saved", said)[1] for said in text}
    saved = checkpoint.steps(tmp_path / "dense" / "checkpoints")
    assert stopped == {str(saved[-1])} and 12 < saved[-1] < 30

    codes, text = run(2, "nothing", "dense", "sparse")
    assert codes == [0, 0], text
    for kind in ("dense", "sparse"):
        assert_the_same(tmp_path, alone, kind)
