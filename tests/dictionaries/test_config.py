"""Settings of a dictionary that contradict each other are refused."""

import pydantic
import pytest

from jaxdiff.config import DictionaryConfig


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"k_start": 100.0}, "belong together"),
        ({"k_anneal": 100}, "belong together"),
        ({"match_l0": True}, "needs activation relu"),
        ({"match_l0": True, "activation": "relu", "l1": 0.0}, "needs activation relu"),
    ],
)
def test_contradictions(settings, reason):
    with pytest.raises(pydantic.ValidationError, match=reason):
        DictionaryConfig(**settings)


def test_what_fits_together():
    DictionaryConfig(k_start=100.0, k_anneal=10)
    DictionaryConfig(match_l0=True, activation="relu")
