"""Against transformers' torch models, live."""

import types
import warnings

import jax
import numpy as np
import pytest

from jaxdiff.models import load, load_report, run, save, sites

pytestmark = pytest.mark.parity

GRADIENT_PARTS = (
    "resid_pre",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.z",
    "attn_out",
    "resid_mid",
    "mlp.post",
    "mlp_out",
    "resid_post",
)

go = jax.jit(run, static_argnames=("taps", "logits"))

NAMES = (
    "gpt2",
    "gpt2_untied_relu_unscaled",
    "gpt_neox_parallel",
    "gpt_neox_sequential_tied",
    "llama_gqa_untied_llama3",
    "llama_mha_tied_biases",
    "llama_one_layer_mqa",
    "mistral_window",
    "mistral_full",
    "qwen2_window",
    "qwen2_untied",
    "qwen3",
    "qwen3_window_biases",
    "qwen3_moe",
    "qwen3_moe_unnormalized",
    "gemma",
    "gemma2_window_caps",
    "gemma2_untied_no_caps",
    "gemma2_full_biases",
    "gemma3_text",
    "gemma3_images",
    "olmo2",
    "olmo2_tied_biases",
    "phi3_longrope",
    "phi3_longrope_short",
    "phi3_window_tied",
)


@pytest.fixture(scope="module")
def torch():
    with warnings.catch_warnings():
        # torch and what it imports still use names that Python has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def reference(torch, golden):
    """The modules beside the golden files."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        patch.syspath_prepend(str(golden))
        import cases
        import record

        yield types.SimpleNamespace(**vars(cases) | vars(record))


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def _ids(ids):
    return ids.numpy().astype(np.int32)


def test_all_cases_are_tried(reference):
    assert set(NAMES) == set(reference.CASES)
    assert set(reference.GOLDEN) < set(NAMES)


def test_logits_and_every_site(reference, name, tmp_path, with_scales):
    model = reference.build(name)
    model.save_pretrained(tmp_path)
    ids = reference.tokens(name, batch=3, length=19)
    expected = reference.record(model, ids)
    lm = load(tmp_path)
    logits, found = go(lm, _ids(ids), tuple(sites(lm)))
    expected = with_scales(lm.spec, {site: value.numpy() for site, value in expected.items()})
    assert found.keys() == expected.keys()
    for site, value in expected.items():
        np.testing.assert_allclose(found[site], value, atol=1e-4, rtol=1e-5, err_msg=site)
    np.testing.assert_array_equal(logits, found["logits"])
    report = load_report(tmp_path)
    assert not report.problems
    assert bool(report.ignored) == (name == "gemma3_images")


def test_gradients_at_sites(reference, name, tmp_path, site_gradients):
    """Of the mean log-probability of the next tokens, at every block."""
    model = reference.build(name)
    model.save_pretrained(tmp_path)
    ids = reference.tokens(name)
    lm = load(tmp_path)
    parts = [part for part in GRADIENT_PARTS if f"blocks.0.{part}" in sites(lm)]
    expected = reference.gradients(model, ids, parts)
    assert len(expected) == len(parts) * lm.spec.n_layers
    found = site_gradients(lm, _ids(ids), tuple(expected))
    for site, value in expected.items():
        error = np.linalg.norm(found[site] - value.numpy()) / np.linalg.norm(value.numpy())
        assert error < 1e-4, (site, error)


def test_bfloat16_is_as_close_as_torch_is(torch, reference, name, tmp_path):
    model = reference.build(name)
    model.save_pretrained(tmp_path)
    ids = reference.tokens(name)
    with torch.no_grad():
        exact = model(ids).logits.numpy()
        theirs = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)(ids).logits
    ours, _ = go(load(tmp_path, dtype="bfloat16"), _ids(ids))
    errors = [
        np.linalg.norm(np.asarray(value, np.float32) - exact) / np.linalg.norm(exact)
        for value in (ours, theirs.to(torch.float32).numpy())
    ]
    assert errors[0] < 1.5 * errors[1] + 1e-3


def test_transformers_loads_what_save_writes(torch, reference, name, tmp_path):
    model = reference.build(name)
    model.save_pretrained(tmp_path / "theirs")
    save(load(tmp_path / "theirs"), tmp_path / "ours")
    # A model that also reads images is saved as its text part.
    images = name == "gemma3_images"
    cls = reference.transformers.Gemma3ForCausalLM if images else type(model)
    again, info = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    if not images:
        state = again.state_dict()
        for key, value in model.state_dict().items():
            assert torch.equal(state[key], value), key
    config = model.config.text_config if images else model.config
    for field in ("eos_token_id", "bos_token_id", "pad_token_id"):
        assert getattr(again.config, field) == getattr(config, field), field
    ids = reference.tokens(name)
    with torch.no_grad():
        assert torch.allclose(again.eval()(ids).logits, model(ids).logits, atol=1e-5)
