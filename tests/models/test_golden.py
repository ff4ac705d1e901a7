"""Against what transformers' torch models computed; golden/reference.py made the files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxdiff.models import load, run, sites

go = jax.jit(run, static_argnames=("taps", "logits"))

CASES = (
    "llama_gqa_untied_llama3",
    "llama_mha_tied_biases",
    "gemma2_window_caps",
    "gemma2_untied_no_caps",
)


@pytest.fixture(params=CASES)
def case(request, golden):
    expected = load_file(golden / request.param / "expected.safetensors")
    return golden / request.param, jnp.asarray(expected.pop("tokens")), expected


def test_logits_and_every_site(case):
    folder, tokens, expected = case
    lm = load(folder)
    taps = tuple(sites(lm))
    _, found = go(lm, tokens, taps)
    assert expected.keys() <= found.keys()
    for i in range(lm.spec.n_layers):
        before = expected[f"blocks.{i - 1}.resid_post"] if i else expected["embed"]
        expected[f"blocks.{i}.resid_pre"] = before
        expected[f"blocks.{i}.resid_mid"] = before + expected[f"blocks.{i}.attn_out"]
    assert expected.keys() == found.keys()
    for site, value in expected.items():
        np.testing.assert_allclose(found[site], value, atol=1e-4, rtol=1e-5, err_msg=site)


def test_bfloat16_is_close(case):
    folder, tokens, expected = case
    logits, _ = go(load(folder, dtype=jnp.bfloat16), tokens)
    assert logits is not None and logits.dtype == jnp.bfloat16
    error = np.asarray(logits, np.float32) - expected["logits"]
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(expected["logits"])
