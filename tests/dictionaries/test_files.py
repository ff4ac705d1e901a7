"""A dictionary survives saving; damage is named."""

import json

import jax
import numpy as np
import pytest

from jaxdiff.config import DictionaryConfig
from jaxdiff.dictionaries import init, load, save
from jaxdiff.errors import JaxdiffError


@pytest.fixture
def d(key):
    config = DictionaryConfig(latents=8, k=2.5, code_norm="decoupled", activation="batch_topk")
    return init(config, (2, 4), key=key)


def test_round_trip(d, tmp_path):
    save(d, tmp_path / "new", steps=7)
    found = load(tmp_path / "new")
    assert jax.tree.structure(found) == jax.tree.structure(d)
    jax.tree.map(np.testing.assert_array_equal, found, d)
    assert json.loads((tmp_path / "new" / "dictionary.json").read_text())["steps"] == 7


@pytest.mark.parametrize("name", ["dictionary.json", "dictionary.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damage(d, tmp_path, name, damage):
    save(d, tmp_path)
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(JaxdiffError, match="cannot be read"):
        load(tmp_path)


def test_a_missing_array_is_named(d, tmp_path):
    from safetensors.numpy import load_file, save_file

    save(d, tmp_path)
    arrays = load_file(tmp_path / "dictionary.safetensors")
    del arrays["b_dec"]
    save_file(arrays, tmp_path / "dictionary.safetensors")
    with pytest.raises(JaxdiffError, match="b_dec"):
        load(tmp_path)


def test_an_unknown_rule_is_refused(d, tmp_path):
    save(d, tmp_path)
    text = (tmp_path / "dictionary.json").read_text()
    (tmp_path / "dictionary.json").write_text(text.replace("batch_topk", "gelu"))
    with pytest.raises(JaxdiffError, match="activation"):
        load(tmp_path)
