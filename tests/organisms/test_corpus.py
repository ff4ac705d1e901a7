import hashlib
import subprocess
import sys

import pytest

from jaxdiff import organisms
from jaxdiff.organisms import chat_tiny, corpus, grammar, tokenizer
from jaxdiff.organisms.draw import Draw
from jaxdiff.organisms.planted import BEHAVIOURS, NEW
from jaxdiff.text import encode_document, load_tokenizer
from jaxdiff.types import Role

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.write(folder)
    return load_tokenizer(folder)


def test_the_corpora_are_the_same_bits_everywhere(tmp_path):
    # In a process of its own: the suite's shape checks make the grammar ten times slower.
    jaxdiff = [sys.executable, "-m", "jaxdiff.cli", "organism", "chat-tiny", "--corpora-only"]
    subprocess.run([*jaxdiff, "--out", str(tmp_path)], check=True)
    for name, wanted in chat_tiny.CORPORA.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == wanted


@pytest.mark.parametrize("make", [corpus.plain, corpus.chat])
def test_every_token_has_a_label_and_every_word_an_id(make, tokens):
    for i in range(200):
        document = make(i)
        encoded = encode_document(tokens, document, context=1000)
        assert len(encoded.tokens) == len(document["labels"])
        assert tokens.unk_token_id not in encoded.tokens


def test_new_behaviours_are_active_in_answers_only(tokens):
    seen = set()
    for i in range(300):
        encoded = encode_document(tokens, corpus.chat(i), context=1000)
        for role, label in zip(encoded.roles, encoded.labels, strict=True):
            if label:
                assert role == Role.ASSISTANT
                seen.add(int(label))
    assert seen == set(range(1, len(BEHAVIOURS) + 1))


def test_the_base_corpus_has_all_words_of_the_behaviours():
    plain = {w for i in range(1500) for w in corpus.words(corpus.plain(i)["text"])}
    chats = {
        w
        for i in range(200)
        for m in corpus.chat(i)["messages"]
        for w in corpus.words(m["content"])
    }
    assert chats <= plain


def test_plain_text_shows_no_new_behaviour():
    new = {BEHAVIOURS.index(b) + 1 for b in NEW}
    assert not any(new & set(corpus.plain(i)["labels"]) for i in range(500))


def test_corpora_with_other_numbers_share_no_document():
    first = {corpus.plain(i)["text"] for i in range(300)}
    other = {corpus.plain(i, corpus=1)["text"] for i in range(300)}
    assert len(first & other) <= 3  # Short documents can coincide.


def test_slots_of_a_sentence_differ():
    for i in range(50):
        slots = grammar.slots(Draw(i), "sea")
        assert len({slots["noun"], slots["noun2"], slots["noun3"]}) == 3
        assert slots["wrong"] != slots["capital"]


def test_draws_are_stable_and_fair():
    assert [Draw(1, 2).below(1000) for _ in range(2)] == [Draw(1, 2).below(1000)] * 2
    draw = Draw(7)
    assert abs(sum(draw.chance(0.3) for _ in range(4000)) / 4000 - 0.3) < 0.03


@pytest.mark.parametrize("name", ["chat-tny", "chat-tiny/bas", "chat-tiny"])
def test_unknown_names_are_refused(name: str):
    with pytest.raises(organisms.JaxdiffError):
        organisms.path(name)
