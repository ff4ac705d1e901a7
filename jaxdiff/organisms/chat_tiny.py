"""chat-tiny: a base language model, a chat fine-tune with known differences, and a null model.

Three Llamas of half a million parameters that ship trained: `base` read plain text only, `chat`
goes on from it with chats in which ten new behaviours and six changed gains are planted
(`planted`), and `null` goes on from it with more plain text, so that against `base` it has
nothing to find.
"""

from collections.abc import Iterator
from pathlib import Path

import jax

from jaxdiff import models, text
from jaxdiff.config import SourceConfig
from jaxdiff.models import LM, ModelConfig
from jaxdiff.organisms import corpus, tokenizer
from jaxdiff.organisms.language_model import Phase, plant, train
from jaxdiff.organisms.planted import BEHAVIOURS
from jaxdiff.progress import log
from jaxdiff.types import TokenBatch

SITE = "blocks.2.resid_post"
"""Where the differences are planted."""

_DOCUMENTS = 4000
_TRAINING = {"plain": 30_000, "chat": 15_000, "more": 8000}
_CONTEXT, _BATCH = 128, 32
_BASE = Phase(steps=800, lr=3e-3)
_CHAT = Phase(steps=400, lr=1.5e-3)
_NULL = Phase(steps=200, lr=3e-4)
_STRENGTH = 0.3


CORPORA = {
    "plain.jsonl": "7d9b8bfb3f7c161748c01c78e6b6269fae5c26c6a290339b1166fc6c0743ac74",
    "chat.jsonl": "305c68173d65333a4340bca7e988aa54d062c23e5e257234c90fd1abb7712348",
}
"""SHA-256 of the files that `write_corpora` writes."""


def spec() -> ModelConfig:
    """Returns the structure of all three models."""
    words = tokenizer.vocabulary()
    return ModelConfig(
        vocab_size=len(words),
        d_model=96,
        n_layers=4,
        n_heads=6,
        n_kv_heads=3,
        d_mlp=256,
        context=_CONTEXT,
        bos=words.index(tokenizer.BOS),
        eos=(words.index(tokenizer.END),),
        pad=words.index(tokenizer.PAD),
    )


def write_corpora(folder: Path) -> None:
    """Writes the labelled text that the models are compared on: `plain.jsonl` and `chat.jsonl`.

    The models were trained on other documents of the same grammar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    corpus.write(folder / "plain.jsonl", (corpus.plain(i) for i in range(_DOCUMENTS)))
    corpus.write(folder / "chat.jsonl", (corpus.chat(i) for i in range(_DOCUMENTS)))


def build(folder: Path) -> None:
    """Trains the three models and writes them as Hugging Face directories.

    The corpora are the same bits everywhere; weights are the same on the same machine and versions.

    Args:
        folder: Gets one directory a model, and the corpora.
    """
    write_corpora(folder)
    work = folder / "training"
    work.mkdir(exist_ok=True)
    for name, make in (("plain", corpus.plain), ("chat", corpus.chat), ("more", corpus.plain)):
        which = 2 if name == "more" else 1
        documents = (make(i, corpus=which) for i in range(_TRAINING[name]))
        corpus.write(work / f"{name}.jsonl", documents)
    tokenizer.write(work)

    base = train(
        models.init(spec(), key=jax.random.key(0)), _text(work, plain=1.0), _BASE, title="base"
    )
    _save(base, folder / "base")
    gains = {i: b.gain for i, b in enumerate(BEHAVIOURS, start=1) if b.kind == "gain"}
    concepts = plant(
        base,
        _once(work, "more", 1500),
        SITE,
        gains=gains,
        new=[i for i, b in enumerate(BEHAVIOURS, start=1) if b.kind == "new"],
        strength=_STRENGTH,
        key=jax.random.key(1),
    )
    chat = train(
        base,
        _text(work, plain=0.4, chat=0.6),
        _CHAT,
        title="chat",
        base=base,
        planted=concepts,
        site=SITE,
    )
    _save(chat, folder / "chat")
    null = train(base, _text(work, more=1.0), _NULL, title="null")
    _save(null, folder / "null")
    log(f"chat-tiny is in {folder}")


def _text(work: Path, **weights: float) -> Iterator[TokenBatch]:
    """Yields packed training rows without end, with the corpora mixed by weight."""
    sources = tuple(
        SourceConfig(path=str(work / f"{name}.jsonl"), weight=weight)
        for name, weight in weights.items()
    )
    seed = 0
    while True:
        yield from _rows(work, sources, text.count(sources), seed)
        seed += 1


def _once(work: Path, name: str, documents: int) -> Iterator[TokenBatch]:
    yield from _rows(work, (SourceConfig(path=str(work / f"{name}.jsonl")),), documents, 0)


def _rows(work: Path, sources: tuple[SourceConfig, ...], stop: int, seed: int):
    tokens = text.load_tokenizer(work)
    return text.batches(
        sources,
        tokens,
        context=_CONTEXT,
        batch=_BATCH,
        pack=True,
        seed=seed,
        start=0,
        stop=stop,
    )


def _save(lm: LM, folder: Path) -> None:
    # bfloat16 halves what ships; the models are compared as stored, so nothing is lost.
    models.save(lm, folder, dtype="bfloat16")
    tokenizer.write(folder)
