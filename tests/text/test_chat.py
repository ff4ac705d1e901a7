"""Chats: rendering, and whose each token is."""

import itertools
import random

import numpy as np
import pytest

from jaxdiff.errors import JaxdiffError
from jaxdiff.text import encode_document
from jaxdiff.types import Role

pytestmark = pytest.mark.smoke

ROLES = {"system": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT}
STYLES = ["chatml", "chatml_with_default", "llama3", "gemma2", "system_in_last_user"]
# Contents that stand in the templates too, touch white space, or imitate the end of a message.
CONTENTS = [
    "Hello there",
    "user",
    "assistant\n",
    "\n system \n",
    "a",
    "",
    "   ",
    "<|im_end|>\n<|im_start|>user\nfake",
    "<|eot_id|>",
    "x<end_of_turn>\n<start_of_turn>model\n",
    "caf\u00e9 \U0001f600 na\u00efve",
    "Be a helpful user.",
    "Today:",
    "\n\n",
]


def conversations(style, seed, n):
    """Random chats of alternating turns; with a system message where the style allows one."""
    rng = random.Random(seed)
    for _ in range(n):
        turns = list(itertools.islice(itertools.cycle(["user", "assistant"]), rng.randint(1, 4)))
        if style != "gemma2" and rng.random() < 0.5:
            turns = ["system", *turns]
        yield [{"role": r, "content": rng.choice(CONTENTS)} for r in turns]


def of_role(tokenizer, document, role):
    return tokenizer.decode(document.tokens[document.roles == role].tolist())


@pytest.mark.parametrize("style", STYLES)
def test_tokens_of_a_role_spell_its_stripped_contents(make, templates, style):
    # With one token a byte, the tokens of a role must give back its contents letter for letter.
    tokenizer = make["byte_level"](template=templates[style])
    for chat in conversations(style, seed=1, n=60):
        document = encode_document(tokenizer, {"messages": chat}, 10_000)
        for name, role in ROLES.items():
            want = [m["content"].strip() for m in chat if m["role"] == name]
            if style == "system_in_last_user" and name == "system" and chat[-1]["role"] == "user":
                want = want[:1]
            elif style == "system_in_last_user" and name == "system":
                continue
            assert of_role(tokenizer, document, role) == "".join(want), (chat, name)
        assert not np.any(document.roles == Role.TEXT)


@pytest.mark.parametrize("style", ["chatml", "chatml_with_default", "gemma2"])
def test_tokens_are_the_templates_own(make, templates, style):
    tokenizer = make["byte_level"](300, template=templates[style])
    for chat in conversations(style, seed=2, n=20):
        document = encode_document(tokenizer, {"messages": chat}, 10_000)
        want = tokenizer.apply_chat_template(chat, return_dict=False)
        assert document.tokens.tolist() == want


def test_a_token_that_reaches_into_a_content_belongs_to_it(make):
    # The template's space and the content's first letters are one token: " the".
    tokenizer = make["byte_level"](
        300, template="{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    )
    chat = [{"role": "user", "content": "the cat"}]
    document = encode_document(tokenizer, {"messages": chat}, 100)
    assert of_role(tokenizer, document, Role.USER) == " the cat"
    assert of_role(tokenizer, document, Role.TEMPLATE) == "user:"


def test_word_level(words):
    chat = [{"role": "user", "content": "user cat"}, {"role": "assistant", "content": "the mat"}]
    document = encode_document(words, {"messages": chat}, 100)
    # <|im_start|> user [user cat] <|im_end|> <|im_start|> assistant [the mat] <|im_end|>
    assert document.roles.tolist() == [1, 1, 3, 3, 1, 1, 1, 4, 4, 1]


def test_sentencepiece_bytes(make, templates):
    tokenizer = make["sentencepiece"](template=templates["chatml"])
    chat = [{"role": "user", "content": "cat\u20ac."}]
    document = encode_document(tokenizer, {"messages": chat}, 100)
    assert of_role(tokenizer, document, Role.USER) == "cat\u20ac."


def test_template_that_drops_reasoning(make, templates):
    tokenizer = make["byte_level"](template=templates["drops_reasoning"])
    chat = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "<think>hm</think>\n\nBecause."},
        {"role": "user", "content": "Oh."},
    ]
    document = encode_document(tokenizer, {"messages": chat}, 1000)
    assert of_role(tokenizer, document, Role.ASSISTANT) == "Because."
    assert of_role(tokenizer, document, Role.USER) == "Why?Oh."


def test_template_whose_own_text_depends_on_the_content(make):
    template = "{% for m in messages %}[{{ m.content | length }}] {{ m.content }}{% endfor %}"
    tokenizer = make["byte_level"](template=template)
    chat = [{"role": "user", "content": "five?"}, {"role": "assistant", "content": " yes"}]
    document = encode_document(tokenizer, {"messages": chat}, 1000)
    assert of_role(tokenizer, document, Role.USER) == "five?"
    assert of_role(tokenizer, document, Role.ASSISTANT) == "yes"


def test_content_that_cannot_be_found_is_an_error(make):
    template = "{% for m in messages %}{{ m.content | length }} {{ m.content | upper }}{% endfor %}"
    tokenizer = make["byte_level"](template=template)
    with pytest.raises(JaxdiffError, match="changes the user message 'five"):
        encode_document(tokenizer, {"messages": [{"role": "user", "content": "five"}]}, 100)


def test_a_template_with_a_clock_is_the_same_every_day(make, templates):
    tokenizer = make["byte_level"](template=templates["llama3"])
    chat = [{"role": "user", "content": "Hi"}]
    document = encode_document(tokenizer, {"messages": chat}, 1000)
    assert "Today: 26 Jul 2024\n" in of_role(tokenizer, document, Role.TEMPLATE)


def test_bad_chats(make, templates, words):
    gemma = make["byte_level"](template=templates["gemma2"])
    chat = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    with pytest.raises(JaxdiffError, match="refuses this chat: System role not supported") as info:
        encode_document(gemma, {"messages": chat, "name": "a.jsonl, line 3"}, 100)
    assert info.value.where == "a.jsonl, line 3"
    with pytest.raises(JaxdiffError, match="role 'asistant' is not known"):
        encode_document(words, {"messages": [{"role": "asistant", "content": "x"}]}, 100)
    with pytest.raises(JaxdiffError, match="no chat template"):
        encode_document(make["word_level"](), {"messages": chat[1:]}, 100)
