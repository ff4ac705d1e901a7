"""Files that SAELens, sparsify and dictionary_learning wrote; golden/write.py ran them."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxdiff.dictionaries import decode, encode, export_dictionary, import_dictionary

pytestmark = pytest.mark.smoke

CASES = sorted(p.name for p in (Path(__file__).parent / "golden").iterdir() if p.is_dir())
RULES = {
    "dictionary_learning_AutoEncoder": "relu",
    "dictionary_learning_AutoEncoderNew": "relu",
    "dictionary_learning_AutoEncoderTopK": "topk",
    "dictionary_learning_BatchTopKSAE": "batch_topk",
    "dictionary_learning_GatedAutoEncoder": "jumprelu",
    "dictionary_learning_JumpReluAutoEncoder": "jumprelu",
    "dictionary_learning_MatryoshkaBatchTopKSAE": "batch_topk",
    "saelens_batchtopk": "jumprelu",
    "saelens_batchtopk_training": "batch_topk",
    "saelens_gated": "jumprelu",
    "saelens_jumprelu": "jumprelu",
    "saelens_standard": "relu",
    "saelens_topk": "topk",
    "saelens_topk_rescaled": "topk",
    "sparsify": "topk",
}


def _check(found, expected):
    x = found.normalization.apply(jnp.asarray(expected["x"])[:, None])
    latents = encode(found.dictionary, x)
    np.testing.assert_allclose(latents, expected["latents"], atol=1e-5, rtol=1e-5)
    decoded = found.normalization.invert(decode(found.dictionary, latents))
    np.testing.assert_allclose(decoded[:, 0], expected["decoded"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_latents_and_reconstructions_are_the_peers(golden, case):
    expected = load_file(golden / case / "expected.safetensors")
    active = np.mean(expected["latents"] > 0)
    assert 0.05 < active < 0.95, "a rule that keeps all or nothing tests nothing"
    found = import_dictionary(golden / case)
    assert found.dictionary.activation == RULES[case]
    assert found.dictionary.k == (2.0 if "topk" in RULES[case] else 0.0)
    _check(found, expected)


@pytest.mark.parametrize("case", CASES)
def test_written_and_read_again(golden, tmp_path, case):
    format = next(name for name in ("saelens", "sparsify", "dictionary_learning") if name in case)
    found = import_dictionary(golden / case)
    export_dictionary(found.dictionary, tmp_path, format, found.normalization)
    again = import_dictionary(tmp_path)
    _check(again, load_file(golden / case / "expected.safetensors"))
    # For inference, SAELens has batch_topk as jumprelu.
    if case != "saelens_batchtopk_training":
        assert again.dictionary.activation == found.dictionary.activation


def test_a_checkpoint_lies_below_its_settings(golden, tmp_path):
    source = golden / "dictionary_learning_BatchTopKSAE"
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "ae_100.pt"
    path.write_bytes((source / "ae.pt").read_bytes())
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    _check(import_dictionary(path), load_file(source / "expected.safetensors"))
