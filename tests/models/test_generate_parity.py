"""Greedy generation against that of transformers, live, on left-padded prompts."""

import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdiff.models import generate, load

pytestmark = pytest.mark.parity

STEPS = 8
GOLDEN = sorted(p.parent.name for p in Path(__file__).parent.glob("golden/*/config.json"))
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def cases(golden):
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # torch and what it imports still use names that Python has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        pytest.importorskip("torch")
        patch.syspath_prepend(str(golden))
        import cases

        yield cases


def _theirs(model, ids, mask):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=STEPS,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits = np.stack([step.float().numpy() for step in found.logits], axis=1)
    return found.sequences[:, ids.shape[1] :].numpy(), logits


@pytest.mark.parametrize("name", GOLDEN)
def test_tokens_logits_and_log_probabilities(cases, golden, name):
    model, ids = cases.build(name), cases.tokens(name)
    mask = ids.new_ones(ids.shape)
    # Both rows stay longer than the context of longrope's short factors: transformers decides
    # between short and long ones for the whole batch.
    mask[1, :2] = 0
    tokens, logits = _theirs(model, ids, mask)
    assert logits.shape[:2] == (2, STEPS)

    def go(lm, prompts, mask):
        return generate(lm, prompts, STEPS, mask=mask, taps=("logits",), stop=())

    prompts, real = ids.numpy().astype(np.int32), mask.numpy().astype(bool)
    found = jax.jit(go, compiler_options=QUICK)(load(golden / name), prompts, real)
    np.testing.assert_array_equal(found.generated, tokens)
    np.testing.assert_allclose(found.taps["logits"][:, 10:], logits, rtol=1e-4, atol=1e-4)
    scores = np.asarray(jax.nn.log_softmax(logits))
    scores = np.take_along_axis(scores, tokens[..., None], 2)[..., 0]
    np.testing.assert_allclose(found.log_probs, scores, rtol=1e-4, atol=1e-4)
