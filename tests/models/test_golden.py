"""Against what transformers' torch models computed; golden/write.py made the files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxdiff.models import load, run, sites

pytestmark = pytest.mark.smoke

# Compiling is most of a test's time; the results are compared with tolerances anyway.
QUICK = {"xla_backend_optimization_level": 0}
go = jax.jit(run, static_argnames=("taps", "logits"), compiler_options=QUICK)

CASES = (
    "gpt2",
    "gpt_neox_parallel",
    "llama_gqa_untied_llama3",
    "llama_mha_tied_biases",
    "mistral_window",
    "qwen2_window",
    "qwen3",
    "qwen3_moe",
    "gemma",
    "gemma2_window_caps",
    "gemma2_untied_no_caps",
    "gemma3_text",
    "olmo2",
    "phi3_longrope",
)


def _read(folder):
    expected = load_file(folder / "expected.safetensors")
    tokens = jnp.asarray(expected.pop("tokens"))
    grads = {name: expected.pop(name) for name in list(expected) if name.startswith("gradient.")}
    return tokens, expected, {name.removeprefix("gradient."): g for name, g in grads.items()}


def _complete(spec, found):
    """Adds the sites that are equal to others, or sums of them."""
    found = dict(found)
    first = found["embed"] + found.get("pos_embed", 0)
    for i in range(spec.n_layers):
        at = f"blocks.{i}"
        before = found[f"blocks.{i - 1}.resid_post"] if i else first
        found[f"{at}.resid_pre"] = found[f"{at}.attn_in"] = found[f"{at}.mlp_in"] = before
        if not spec.parallel:
            middle = before + found[f"{at}.attn_out"]
            found[f"{at}.resid_mid"] = found[f"{at}.mlp_in"] = middle
    return found


@pytest.mark.parametrize(
    ("case", "stacked"),
    [
        *((case, True) for case in CASES),
        *((case, False) for case in ("gpt2", "qwen3_moe", "gemma3_text")),
    ],
)
def test_logits_and_every_site(golden, case, stacked, with_scales):
    lm = load(golden / case, stacked=stacked)
    tokens, expected, _ = _read(golden / case)
    _, found = go(lm, tokens, tuple(sites(lm)))
    expected = with_scales(lm.spec, _complete(lm.spec, expected))
    assert expected.keys() == found.keys()
    for site, value in expected.items():
        np.testing.assert_allclose(found[site], value, atol=1e-4, rtol=1e-5, err_msg=site)


@pytest.mark.parametrize("case", CASES)
def test_gradients_at_sites(golden, case, site_gradients):
    """Of the mean log-probability of the next tokens."""
    tokens, _, expected = _read(golden / case)
    found = site_gradients(load(golden / case), tokens, tuple(expected))
    assert len(expected) == 7
    for site, value in expected.items():
        error = np.linalg.norm(found[site] - value) / np.linalg.norm(value)
        assert error < 1e-4, (site, error)


@pytest.mark.parametrize("case", ["llama_mha_tied_biases", "gemma2_window_caps", "gpt2"])
def test_bfloat16_is_close(golden, case):
    tokens, expected, _ = _read(golden / case)
    logits, _ = go(load(golden / case, dtype=jnp.bfloat16), tokens)
    assert logits.dtype == jnp.bfloat16
    error = np.asarray(logits, np.float32) - expected["logits"]
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(expected["logits"])
