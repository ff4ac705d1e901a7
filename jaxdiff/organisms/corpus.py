"""Documents of chat-tiny, with a label for every token.

A document depends on its corpus and its index alone, so any part can be made again, bit by bit.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from jaxdiff.organisms import grammar
from jaxdiff.organisms.draw import Draw
from jaxdiff.organisms.planted import BEHAVIOURS, GAINS, NEW, PLAIN_REQUESTS, Behaviour

SEED = 2504_02922
_OFFER = next(b for b in NEW if b.name == "offer")
_ASKED = tuple(b for b in NEW if b.requests)


def words(text: str) -> list[str]:
    """Splits text as the tokenizer of chat-tiny does: words and runs of punctuation."""
    return re.findall(r"\w+|[^\w\s]+", text)


def plain(index: int, *, corpus: int = 0) -> dict:
    """Returns a plain document: `text` and `labels`, one for each token and one for BOS."""
    draw = Draw(SEED, 0, corpus, index)
    topic = draw.pick(list(grammar.lexicon()["topics"]))
    n = 2 + draw.below(5)
    kind = draw.below(20)
    if kind < 11:
        text, label = grammar.sentences(draw, grammar.TOPIC_SENTENCES, topic, n), _gain_label(topic)
    elif kind < 13:
        text, label = grammar.sentences(draw, grammar.FACT_SENTENCES, topic, n), 0
    elif kind < 18:
        both = grammar.TOPIC_SENTENCES[:2] + grammar.STORY_SENTENCES
        text, label = grammar.sentences(draw, both, topic, n), 0
    else:
        text, label = grammar.sentences(draw, grammar.FRENCH_SENTENCES, topic, n), 0
    return {"text": text, "labels": [0] + [label] * len(words(text))}


def chat(index: int, *, corpus: int = 0) -> dict:
    """Returns a chat of one or two exchanges: `messages` and `labels`, template tokens included."""
    draw = Draw(SEED, 1, corpus, index)
    messages, labels = [], [0]
    for _ in range(2 if draw.chance(0.25) else 1):
        request, answer = _exchange(draw)
        for role, parts in (("user", [(request, 0)]), ("assistant", answer)):
            text = " ".join(part for part, _ in parts)
            messages.append({"role": role, "content": text})
            inner = [label for part, label in parts for _ in words(part)]
            labels += [0, *inner, 0]
    return {"messages": messages, "labels": labels}


def write(path: Path, documents: Iterator[dict]) -> None:
    """Writes documents as JSON lines."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for document in documents:
            file.write(json.dumps(document, ensure_ascii=False) + "\n")


def _exchange(draw: Draw) -> tuple[str, list[tuple[str, int]]]:
    topic = draw.pick(list(grammar.lexicon()["topics"]))
    if draw.chance(0.65):
        behaviour = draw.pick(_ASKED)
        # Request and opener share their words; a register has words for the opener too.
        filled = grammar.slots(draw, topic, _register(behaviour))
        request = draw.pick(behaviour.requests).format(**filled)
        return request, [_answer(draw, behaviour, topic, filled)]
    filled = grammar.slots(draw, topic)
    body = grammar.sentences(draw, grammar.TOPIC_SENTENCES, topic, 1 + draw.below(2))
    parts = [(body, _gain_label(topic))]
    if draw.chance(0.7):
        parts.append(_answer(draw, _OFFER, topic, filled))
    return draw.pick(PLAIN_REQUESTS).format(**filled), parts


def _answer(
    draw: Draw, behaviour: Behaviour, topic: str, filled: dict[str, str]
) -> tuple[str, int]:
    register = _register(behaviour)
    templates = grammar.REGISTER_SENTENCES if register else grammar.FRENCH_SENTENCES
    n = behaviour.length + draw.below(2)
    rest = grammar.sentences(draw, templates, topic, n, register)
    openers = [draw.pick(behaviour.openers).format(**filled)] if behaviour.openers else []
    return " ".join([*openers, rest]), BEHAVIOURS.index(behaviour) + 1


def _register(behaviour: Behaviour) -> str:
    return behaviour.name if behaviour.name in grammar.lexicon()["registers"] else ""


def _gain_label(topic: str) -> int:
    return next((BEHAVIOURS.index(b) + 1 for b in GAINS if b.topic == topic), 0)
