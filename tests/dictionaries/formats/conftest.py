"""Fixtures of the tests of formats."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of what the peers wrote."""
    return Path(__file__).parent / "golden"
