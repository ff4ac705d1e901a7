"""Helpers beside the tests: importlib mode makes no package of a test folder."""

import importlib.util
import json
import pathlib

import pytest


def load(name):
    path = pathlib.Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def memory():
    """The module with the in-memory source."""
    return load("memory_source")


@pytest.fixture(scope="session")
def reference():
    """The module with the float64 formulas."""
    return load("reference")


@pytest.fixture(scope="session")
def script():
    """The module of the process that kills itself."""
    return load("run_until_killed")


@pytest.fixture(scope="session")
def processes():
    """The module of one of several processes."""
    return load("train_in_processes")


def _bits(folder):
    """Returns what a finished training left, without what another run would measure otherwise."""
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert all(0 <= line.pop("waited") <= 1 for line in lines)
    names = ("dictionary.safetensors", "dictionary.json")
    return lines, *[(folder / name).read_bytes() for name in names]


@pytest.fixture(scope="session")
def bits():
    """Reads all that must be the same after an interruption."""
    return _bits


@pytest.fixture(autouse=True)
def quick_lists(few_classes):
    """Sparse steps of all tests here compile few classes of segments."""
