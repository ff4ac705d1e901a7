import importlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from harness.measure import difference
from subjects import SHAPES, make_inputs, write_models
from workloads import WORKLOADS, Subject, cases, quarter

SHAPE = SHAPES["minute"]
CASES = {str(case): case for case in cases(SHAPE)}
PROGRAM = pathlib.Path(sys.path[0]) / "interventions.py"


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    base, ft = write_models(tmp_path_factory.mktemp("models"), SHAPE)
    return Subject(str(base), str(ft), SHAPE, make_inputs(SHAPE))


@pytest.fixture(scope="module")
def jaxdiff(subject):
    return importlib.import_module("libraries.jaxdiff_programs").JaxdiffPrograms(subject)


def _outputs(library, case):
    return next(iter(library.ways(CASES[case]).values()))()


@pytest.mark.parametrize("case", CASES)
def test_all_ways_of_a_case_agree(jaxdiff, case):
    shape = SHAPE
    (_, one), (_, other) = jaxdiff.ways(CASES[case]).items()
    outputs = one()
    assert difference(other(), outputs) <= 1e-4
    grid = {"W4": (shape.layers, shape.tokens), "W7": (shape.layers, shape.tokens)}
    expected = grid.get(case[:2], outputs[0].shape)
    assert outputs[0].shape == expected


def test_workloads_agree_with_each_other(jaxdiff):
    logits = _outputs(jaxdiff, "W0 B4")[0]
    np.testing.assert_allclose(_outputs(jaxdiff, "W0 B1")[0], logits[:1], atol=1e-5)
    acts = _outputs(jaxdiff, "W1 B4")[0]
    np.testing.assert_allclose(_outputs(jaxdiff, "W2 B4")[0], acts[quarter(SHAPE)], atol=1e-5)


def test_a_later_call_compiles_nothing(jaxdiff):
    call = next(iter(jaxdiff.ways(CASES["W3 B1"]).values()))
    call()
    before = jaxdiff.compiles()
    call()
    assert jaxdiff.compiles() == before > 0


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_torch_hooks_give_the_same(subject, jaxdiff, hooks, case):
    expected = _outputs(jaxdiff, case)
    for name, call in hooks.ways(CASES[case]).items():
        if name != "torch.compile":  # It takes 20 s, and is the same model.
            assert difference(call(), expected) <= 1e-4


@pytest.fixture(scope="module")
def hooks(subject):
    pytest.importorskip("torch")
    return importlib.import_module("libraries.torch_hooks").TorchHooks(subject)


def test_the_program_runs_without_peers(tmp_path):
    results = tmp_path / "results" / "tiny.json"
    arguments = ["--shape", "minute", "--workloads", "W0,W2", "--seconds", "0.05"]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments, "--json", str(results)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "W0 B4: plain forward" in done.stdout and "not measured" in done.stdout
    written = json.loads(results.read_text())
    assert written["machine"]["OMP_WAIT_POLICY"] == "PASSIVE"
    rows = written["shapes"]["minute"]["cases"]["W2 B4"]
    assert [row["library"] for row in rows] == ["jaxdiff", "jaxdiff"]
    assert all(row["compiled"] > 0 == row["recompiled"] for row in rows)
    assert all(0 < row["fastest"] <= row["median"] <= row["first_s"] for row in rows)
    capture = written["shapes"]["minute"]["goals"][-1]
    assert capture["ratio"] == pytest.approx(
        min(row["median"] for row in rows)
        / min(row["median"] for row in written["shapes"]["minute"]["cases"]["W0 B4"])
    )


def test_an_unknown_workload_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--workloads", "W0,W10"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "['W10']: choose from" in done.stderr


def test_workloads_are_all_run():
    assert {case.workload for case in CASES.values()} == set(WORKLOADS)
