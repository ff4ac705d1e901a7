"""Helpers beside the tests: importlib mode makes no package of a test folder."""

import importlib.util
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
