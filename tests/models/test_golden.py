"""Against what transformers' torch models computed; golden/reference.py made the files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxdiff.models import load, run, sites

pytestmark = pytest.mark.smoke

go = jax.jit(run, static_argnames=("taps", "logits"))

CASES = (
    "llama_gqa_untied_llama3",
    "llama_mha_tied_biases",
    "gemma2_window_caps",
    "gemma2_untied_no_caps",
)


def _read(folder):
    expected = load_file(folder / "expected.safetensors")
    return jnp.asarray(expected.pop("tokens")), expected


@pytest.mark.parametrize("case", CASES)
def test_logits_and_every_site(golden, case):
    lm = load(golden / case)
    tokens, expected = _read(golden / case)
    _, found = go(lm, tokens, tuple(sites(lm)))
    for i in range(lm.spec.n_layers):
        before = expected[f"blocks.{i - 1}.resid_post"] if i else expected["embed"]
        expected[f"blocks.{i}.resid_pre"] = before
        expected[f"blocks.{i}.resid_mid"] = before + expected[f"blocks.{i}.attn_out"]
    assert expected.keys() == found.keys()
    for site, value in expected.items():
        np.testing.assert_allclose(found[site], value, atol=1e-4, rtol=1e-5, err_msg=site)


@pytest.mark.parametrize("case", ["llama_mha_tied_biases", "gemma2_window_caps"])
def test_bfloat16_is_close(golden, case):
    tokens, expected = _read(golden / case)
    logits, _ = go(load(golden / case, dtype=jnp.bfloat16), tokens)
    assert logits.dtype == jnp.bfloat16
    error = np.asarray(logits, np.float32) - expected["logits"]
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(expected["logits"])
