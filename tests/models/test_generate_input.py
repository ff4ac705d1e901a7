"""What generation refuses, before anything is traced; and ragged prompts in one array."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdiff import models
from jaxdiff.edits import Add, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import Tap, decode, extend, generate, init, pad_left, prefill, unstack

PROMPTS = np.ones((2, 3), np.int32)
VECTOR = np.ones(16, np.float32)


@pytest.mark.parametrize(
    "prompts, steps, options, message",
    [
        (PROMPTS, 0, {}, "steps=0"),
        (PROMPTS, 2, dict(temperature=-1.0), "temperature=-1.0"),
        (PROMPTS, 2, dict(temperature=float("nan")), "temperature=nan"),
        (PROMPTS, 2, dict(temperature=1.0), "needs a key"),
        (PROMPTS, 2, dict(top_k=0), "top_k=0"),
        (PROMPTS, 2, dict(top_p=0.0), "top_p=0.0"),
        (PROMPTS, 2, dict(top_p=1.5), "top_p=1.5"),
        (PROMPTS + 23, 2, {}, "no token 24 in a vocabulary of 24"),
        (-PROMPTS, 2, {}, "no token -1"),
        (PROMPTS[0], 2, {}, r"prompts are \[B, T\], not \[3\]"),
        ([1, 2, 3], 2, {}, "one list of tokens"),
        ("hello", 2, {}, "token ids, not text"),
        (["hello"], 2, {}, "token ids, not text"),
        ([["a", "b"]], 2, {}, "token ids, not text"),
        ([[3.7, 4.2]], 2, {}, "token ids, not floats"),
        (PROMPTS.astype(np.float32), 2, {}, "token ids, not float32"),
        (PROMPTS, 2, dict(taps=(Tap("embed", offload=True),)), "stays on the device"),
        ([[1, 2], []], 2, {}, "without a token: rows 1"),
        ([], 2, {}, r"prompts are \[B, T\], not \[0, 0\]"),
        (PROMPTS[:, :0], 2, {}, "without a token: rows 0, 1"),
        (PROMPTS, 2, dict(mask=np.eye(2, 3, k=5, dtype=bool)), "without a token: rows 0, 1"),
        (PROMPTS, 2, dict(mask=np.ones((2, 4), bool)), "the mask is"),
        (PROMPTS, 2, dict(mask=np.ones((2, 3), np.int32)), "the mask is int32"),
        ([[1]], 2, dict(mask=np.ones((1, 1), bool)), "lists of tokens need no mask"),
        (PROMPTS, 2, dict(taps=("blocks.9.resid_post",)), "no site 'blocks.9.resid_post'"),
        (PROMPTS, 2, dict(edits=(edit("embed", Add(VECTOR), positions=4),)), "outside"),
        (PROMPTS, 2, dict(edits=(edit("embed", Add(VECTOR), rows=2),)), "outside"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_tracing(
    llama, prompts, steps, options, message
):
    before = models.traces()
    with pytest.raises(JaxdiffError, match=message):
        generate(llama, prompts, steps, **options)
    assert models.traces() == before


def test_learned_positions_end(llama):
    spec = dataclasses.replace(llama.spec, rope=None, context=8)
    lm = init(spec, key=jax.random.key(0))
    # The last token is not run and needs no position; padding needs none, either.
    texts = generate(lm, [[1] * 5, [2]], 4)
    assert np.isfinite(texts.log_probs).all()
    with pytest.raises(JaxdiffError, match="5 and 4 more tokens is longer than the 8"):
        generate(lm, [[1] * 5, [2]], 5)
    state, _ = prefill(lm, PROMPTS, 100)
    with pytest.raises(JaxdiffError, match="3 and 6 more tokens"):
        decode(lm, state, 6)
    state, _ = decode(lm, state, 2)
    # Five tokens are run and one is pending; the padding of what is appended needs no positions.
    with pytest.raises(JaxdiffError, match="longer than the 8"):
        extend(lm, state, [[1, 2, 3], [3]])
    extend(lm, state, [[1, 2], [3]])


def test_a_state_of_another_model_is_refused(llama):
    state, _ = prefill(llama, PROMPTS, 8)
    other = init(dataclasses.replace(llama.spec, n_layers=2), key=jax.random.key(0))
    for lm in (other, unstack(llama)):
        with pytest.raises(JaxdiffError, match="made by a model of another shape"):
            decode(lm, state, 1)
        with pytest.raises(JaxdiffError, match="made by a model of another shape"):
            extend(lm, state, [[1], [2]])
    decode(llama, state, 1)
    with pytest.raises(JaxdiffError, match="this state is used up"):
        decode(llama, state, 1)


def test_a_capacity_ends(llama):
    with pytest.raises(JaxdiffError, match="3 more do not fit a capacity of 2"):
        prefill(llama, PROMPTS, 2)
    state, _ = prefill(llama, PROMPTS, 6)
    with pytest.raises(JaxdiffError, match="3 columns are used, and 4 more do not fit"):
        decode(llama, state, 4)
    with pytest.raises(JaxdiffError, match="3 columns are used, and 4 more do not fit"):
        extend(llama, state, PROMPTS)
    with pytest.raises(JaxdiffError, match="1 texts for 2 rows"):
        extend(llama, state, PROMPTS[:1])
    with pytest.raises(JaxdiffError, match="steps=0"):
        decode(llama, state, 0)


def test_pad_left():
    tokens, mask = pad_left([[1, 2, 3], [], [4]], multiple=2, fill=9)
    assert tokens.tolist() == [[9, 1, 2, 3], [9, 9, 9, 9], [9, 9, 9, 4]]
    assert mask.tolist() == [[False, True, True, True], [False] * 4, [False] * 3 + [True]]
    assert pad_left([[1] * 17])[0].shape == (1, 32) and pad_left([[1] * 16])[0].shape == (1, 16)


def test_lists_of_lengths_in_one_bucket_share_a_program(llama):
    one = generate(llama, [[1, 2, 3]], 2)
    before = models.traces()
    two = generate(llama, [[5] * 14], 2)
    assert models.traces() == before and one.start == two.start == 16


def test_the_pad_token_need_not_be_in_the_vocabulary(llama):
    lm = dataclasses.replace(llama, spec=dataclasses.replace(llama.spec, pad=24))
    prompts = [[1, 2, 3], [4]]
    free = generate(llama, prompts, 6)
    stop = (int(free.generated[1, 1]),)
    texts, expected = (generate(model, prompts, 6, stop=stop) for model in (lm, llama))
    np.testing.assert_array_equal(texts.log_probs, expected.log_probs)
    assert (texts.tokens[0, :13] == 24).all() and (texts.generated[1, 2:] == 24).all()
