"""The models of chat-tiny, as they ship."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import models, organisms, text
from jaxdiff.organisms import chat_tiny, corpus
from jaxdiff.organisms.language_model import next_token_loss

NAMES = {"base": "chat-tiny/base", "chat": "chat-tiny/chat", "null": "null-tiny/longer"}
PATHS = {name: organisms.path(full) for name, full in NAMES.items()}


@pytest.fixture(scope="module")
def lms():
    return {name: models.load(path) for name, path in PATHS.items()}


def _loss(lm, documents: list[dict]) -> float:
    """Returns the mean loss over documents that no model was trained on [nats per token]."""
    encoded = text.encode_documents(text.load_tokenizer(PATHS["chat"]), documents, 64)
    tokens, sequences = np.zeros((len(encoded), 64), np.int32), np.full((len(encoded), 64), -1)
    for i, document in enumerate(encoded):
        tokens[i, : len(document.tokens)] = document.tokens
        sequences[i, : len(document.tokens)] = i
    logits, _ = jax.jit(models.run, static_argnames=("taps", "logits"))(lm, jnp.asarray(tokens))
    return float(next_token_loss(logits, jnp.asarray(tokens), jnp.asarray(sequences)))


def test_the_pair_is_small():
    folder = PATHS["base"].parent
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= 4e6


def test_only_the_fine_tune_knows_chats(lms):
    chats, plain = ([make(i) for i in range(40)] for make in (corpus.chat, corpus.plain))
    assert _loss(lms["chat"], chats) < 1.2 < 3 < _loss(lms["base"], chats)
    assert _loss(lms["null"], chats) > 3
    losses = [_loss(lm, plain) for lm in lms.values()]
    assert max(losses) < min(losses) + 0.15


@pytest.mark.parametrize("name", NAMES)
def test_the_structure_is_the_recipes(name, lms):
    shipped, made = lms[name].spec, chat_tiny.spec()
    assert (shipped.vocab_size, shipped.d_model, shipped.n_layers, shipped.n_kv_heads) == (
        made.vocab_size,
        made.d_model,
        made.n_layers,
        made.n_kv_heads,
    )


@pytest.mark.parity
def test_transformers_computes_the_same_logits(lms):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    tokens = np.random.default_rng(0).integers(11, 400, (2, 40)).astype(np.int32)
    for name, path in PATHS.items():
        theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        with torch.no_grad():
            wanted = theirs(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
        ours, _ = models.run(lms[name], jnp.asarray(tokens))
        np.testing.assert_allclose(ours, wanted, atol=1e-4)
