"""The word-level tokenizer of chat-tiny, in Hugging Face form, with a chat template."""

import json
from pathlib import Path
from typing import Any

from jaxdiff.organisms import grammar, planted
from jaxdiff.organisms.corpus import words

PAD, BOS, END, SYSTEM, USER, ASSISTANT = CONTROL = (
    "<|pad|>",
    "<|bos|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
UNKNOWN = "<|unk|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def vocabulary() -> list[str]:
    """Returns all tokens in the order of their ids: control tokens, then words as they occur."""
    found = dict.fromkeys((*CONTROL, UNKNOWN, ".", ",", "?", "!"))
    for text in _all_text():
        found |= dict.fromkeys(words(text))
    return list(found)


def write(folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`."""
    ids = {token: i for i, token in enumerate(vocabulary())}
    state = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": ids[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in (*CONTROL, UNKNOWN)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "", "cleanup": True},
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": UNKNOWN},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 128,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("tokenizer.json", state), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _all_text() -> list[str]:
    fixed = (
        grammar.TOPIC_SENTENCES
        + grammar.FACT_SENTENCES
        + grammar.STORY_SENTENCES
        + planted.PLAIN_REQUESTS
        + tuple(t for b in planted.NEW for t in (*b.requests, *b.openers))
    )
    return [_without_slots(t) for t in fixed] + list(_leaves(grammar.lexicon()))


def _without_slots(template: str) -> str:
    return " ".join(part for i, part in enumerate(_split_braces(template)) if i % 2 == 0)


def _split_braces(template: str) -> list[str]:
    return template.replace("}", "{").split("{")


def _leaves(node: Any) -> list[str]:
    if isinstance(node, dict):
        items = node.items()
        named = [k for k, v in items if isinstance(v, str)]
        return named + [leaf for _, v in items for leaf in _leaves(v)]
    return [leaf for v in node for leaf in _leaves(v)] if isinstance(node, list) else [node]
