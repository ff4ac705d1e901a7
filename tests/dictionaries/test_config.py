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
        ({"match_l0": True, "activation": "jumprelu"}, "needs activation relu"),
        ({"activation": "jumprelu", "code_norm": "decoupled"}, "one threshold a latent"),
        ({"cross": -0.5}, "cross needs loss mse"),
        ({"latents": 8, "prefixes": (4, 4)}, "prefixes must rise"),
        ({"latents": 8, "prefixes": (8,)}, "below 8 latents"),
        ({"latents": 8, "shared": 4, "dedicated": (3, 2)}, "do not fit into 8 latents"),
        ({"latents": 8, "dedicated": (3, -1)}, "do not fit into 8 latents"),
        ({"shared": 4, "shared_penalty": 0.1}, "needs activation relu or jumprelu"),
        ({"reads": ()}, "must name sources"),
        ({"writes": (1, 1)}, "must name sources"),
        ({"reads": (0,), "writes": (1,), "tied": True}, "of the same sources"),
    ],
)
def test_contradictions(settings, reason):
    with pytest.raises(pydantic.ValidationError, match=reason):
        DictionaryConfig(**settings)


def test_what_fits_together():
    DictionaryConfig(k_start=100.0, k_anneal=10)
    DictionaryConfig(match_l0=True, activation="relu")
