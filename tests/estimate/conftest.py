"""Lowering a program puts what JAX knows of each argument in its place, which is no array."""

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def shapes_in_place_of_arrays():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
