"""Against transformers' torch models, live."""

import runpy
import warnings

import jax
import numpy as np
import pytest

from jaxdiff.models import load, run, save, sites

pytestmark = pytest.mark.parity

go = jax.jit(run, static_argnames=("taps", "logits"))


@pytest.fixture(scope="module")
def torch():
    with warnings.catch_warnings():
        # torch and what it imports still use names that Python has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def reference(torch, golden):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return runpy.run_path(str(golden / "reference.py"))


NAMES = (
    "llama_gqa_untied_llama3",
    "llama_mha_tied_biases",
    "gemma2_window_caps",
    "gemma2_untied_no_caps",
    "llama_one_layer_mqa",
    "gemma2_full_biases",
)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_all_cases_are_tried(reference):
    assert set(NAMES) == set(reference["CASES"])


def test_logits_and_every_site(reference, name, tmp_path):
    model = reference["build"](name)
    model.save_pretrained(tmp_path)
    ids = reference["tokens"](name, batch=3, length=19)
    expected = reference["record"](model, ids)
    lm = load(tmp_path)
    logits, found = go(lm, ids.numpy().astype(np.int32), tuple(sites(lm)))
    assert found.keys() == expected.keys()
    for site, value in expected.items():
        np.testing.assert_allclose(found[site], value.numpy(), atol=1e-4, rtol=1e-5, err_msg=site)
    np.testing.assert_array_equal(logits, found["logits"])


def test_bfloat16_is_as_close_as_torch_is(torch, reference, name, tmp_path):
    model = reference["build"](name)
    model.save_pretrained(tmp_path)
    ids = reference["tokens"](name)
    with torch.no_grad():
        exact = model(ids).logits.numpy()
        theirs = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)(ids).logits
    ours, _ = go(load(tmp_path, dtype="bfloat16"), ids.numpy().astype(np.int32))
    errors = [
        np.linalg.norm(np.asarray(value, np.float32) - exact) / np.linalg.norm(exact)
        for value in (ours, theirs.to(torch.float32).numpy())
    ]
    assert errors[0] < 1.5 * errors[1] + 1e-3


def test_transformers_loads_what_save_writes(torch, reference, name, tmp_path):
    model = reference["build"](name)
    model.save_pretrained(tmp_path / "theirs")
    save(load(tmp_path / "theirs"), tmp_path / "ours")
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    state = again.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value), key
    for field in ("eos_token_id", "bos_token_id", "pad_token_id", "rope_parameters", "head_dim"):
        assert getattr(again.config, field) == getattr(model.config, field), field
    ids = reference["tokens"](name)
    with torch.no_grad():
        assert torch.allclose(again.eval()(ids).logits, model(ids).logits, atol=1e-5)
