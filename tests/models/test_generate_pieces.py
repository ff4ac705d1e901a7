"""Streams and chats: texts that are generated piece by piece."""

import jax
import numpy as np
import pytest

from jaxdiff import models
from jaxdiff.edits import Add, edit
from jaxdiff.models import decode, extend, generate, pad_left, prefill, unstack

SITE = "blocks.2.resid_post"


def _tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 24, shape).astype(np.int32)


def _steer(scale=1.0):
    return (edit(SITE, Add(np.linspace(-1, 1, 16, dtype=np.float32), scale), positions=[2, 7]),)


@pytest.mark.parametrize("apart", [False, True], ids=["stacked", "apart"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pieces_are_the_whole(gemma2, apart, temperature):
    lm = unstack(gemma2) if apart else gemma2
    prompts, mask = pad_left([[1, 2, 3, 4, 5], [6, 7]], multiple=1)
    options = dict(mask=mask, edits=_steer(), taps=(SITE,), stop=(11,))
    options |= dict(temperature=temperature, key=jax.random.key(3))
    whole = generate(lm, prompts, 9, **options)
    state, piece = prefill(lm, prompts, 20, **options)
    pieces = [piece]
    for steps in (2, 2, 4):
        state, piece = decode(lm, state, steps, edits=_steer(), taps=(SITE,))
        assert piece.tokens.shape == (2, steps) and piece.start == 0
        pieces.append(piece)
    for name in ("tokens", "sequences", "log_probs"):
        joined = np.concatenate([getattr(p, name) for p in pieces], axis=1)
        np.testing.assert_allclose(joined, getattr(whole, name), atol=1e-5, err_msg=name)
    joined = np.concatenate([p.taps[SITE] for p in pieces], axis=1)
    real = np.asarray(whole.sequences)[:, :-1] >= 0
    np.testing.assert_allclose(joined[real], whole.taps[SITE][real], rtol=1e-4, atol=1e-5)


def test_pieces_of_one_length_are_compiled_once(llama):
    state, _ = prefill(llama, _tokens(2, 5), 24)
    state, _ = decode(llama, state, 3, edits=_steer(1.0))
    before = models.traces()
    for scale in (2.0, 3.0):
        old = state
        state, _ = decode(llama, state, 3, edits=_steer(scale))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.cache))
    assert models.traces() == before


def _whole(texts, pieces):
    """The rows of a chat, without padding."""
    tokens, sequences = (
        np.concatenate([np.asarray(getattr(p, name)) for p in pieces], axis=1)
        for name in ("tokens", "sequences")
    )
    return [row[real].tolist() for row, real in zip(tokens, sequences >= 0, strict=True)]


@pytest.mark.parametrize("apart", [False, True], ids=["stacked", "apart"])
def test_a_chat_that_goes_on_is_the_chat_from_its_beginning(lm, apart):
    """Rows of other lengths, one of which ended early; also where windows count tokens."""
    lm = unstack(lm) if apart else lm
    prompts = [[1, 2, 3, 4, 5], [6, 7]]
    free = np.asarray(generate(lm, prompts, 5).generated)
    stop = (int(free[0, 1]),)
    state, start = prefill(lm, prompts, 64, stop=stop)
    state, reply = decode(lm, state, 4)
    assert reply.lengths[0] < 4
    told = _whole(prompts, (start, reply))
    for answers in ([[8, 9, 10], [11, 12, 13, 14]], [[], [15]]):
        state, begun = extend(lm, state, answers)
        # The last generated token is run with the text that is appended, and stands before it.
        kept = _whole(None, (begun,))
        assert [row[0] for row in kept] == [row[-1] for row in told]
        chat = [row + answer for row, answer in zip(told, answers, strict=True)]
        assert [row[1:-1] for row in kept] == answers
        fresh = generate(lm, chat, 4, stop=stop)
        state, reply = decode(lm, state, 3)
        for row, text in enumerate(chat):
            n = int(fresh.lengths[row])
            mine = [kept[row][-1], *np.asarray(reply.tokens)[row].tolist()][:n]
            assert mine == np.asarray(fresh.generated)[row, :n].tolist()
            assert int(state.lengths[row]) == len(text) + n - 1
        scores = np.concatenate([begun.log_probs, reply.log_probs], axis=1)
        np.testing.assert_allclose(scores, fresh.log_probs, rtol=1e-4, atol=1e-5)
        told = [
            c + np.asarray(fresh.generated)[r, : int(fresh.lengths[r])].tolist()
            for r, c in enumerate(chat)
        ]


def test_steps_begin_anew_with_each_text(llama):
    """An edit of step 0 is for texts that are given, not for those that are generated."""
    vector, every = np.ones(16, np.float32), (range(8), range(32))

    def chat(steps, positions):
        steps, positions = np.isin(np.arange(8), steps), np.isin(np.arange(32), positions)
        asked = (edit(SITE, Add(vector), steps=steps, positions=positions),)
        state, one = prefill(llama, _tokens(1, 4), 32, edits=asked)
        state, two = decode(llama, state, 3, edits=asked)
        state, three = extend(llama, state, _tokens(1, 2, seed=1), edits=asked)
        _, four = decode(llama, state, 3, edits=asked)
        return np.concatenate([p.log_probs for p in (one, two, three, four)], axis=1)

    everywhere = chat(*map(list, every))
    # 4 tokens, 4 generated of which the last is run with 2 more, 4 generated.
    for steps, positions in ((0, [0, 1, 2, 3, 7, 8, 9]), (1, [4, 10]), ([2, 3], [5, 6, 11, 12])):
        by_steps = chat(steps, list(every[1]))
        np.testing.assert_allclose(by_steps, chat(list(every[0]), positions), rtol=1e-4, atol=1e-5)
        assert np.abs(by_steps - everywhere).max() > 1e-3
