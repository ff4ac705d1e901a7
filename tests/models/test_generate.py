"""Generation against runs of the final texts."""

import numpy as np
import pytest

from jaxdiff.models import generate, run, unstack


@pytest.fixture(params=[False, True], ids=["stacked", "apart"])
def model(request, lm):
    return unstack(lm) if request.param else lm


def _tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 24, shape).astype(np.int32)


TAPS = ("embed", "blocks.1.resid_post", "blocks.2.attn.scores", "blocks.*.attn.pattern", "logits")


def test_greedy_steps_and_taps_equal_one_run(model):
    texts = generate(model, _tokens(2, 5), 7, taps=TAPS)
    logits, found = run(model, texts.tokens[:, :-1], TAPS)
    np.testing.assert_array_equal(texts.generated, np.argmax(logits, -1)[:, 4:])
    assert texts.taps.keys() == found.keys()
    # Scores are read before the mask: those of later tokens are not known yet, and 0.
    for each in (found, texts.taps):
        each["blocks.2.attn.scores"] = np.tril(each["blocks.2.attn.scores"])
    for name, value in found.items():
        np.testing.assert_allclose(texts.taps[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
