"""Documents to tokens, roles, labels."""

import numpy as np
import pytest

from jaxdiff.errors import JaxdiffError
from jaxdiff.text import encode_document, encode_documents
from jaxdiff.types import Role


def test_text_has_bos_and_the_text_role(bytes_):
    document = encode_document(bytes_, {"text": "ab "}, 100)
    assert document.tokens.tolist() == [bytes_.bos_token_id, *bytes_.encode("ab ")]
    assert document.roles.tolist() == [Role.TEMPLATE, Role.TEXT, Role.TEXT, Role.TEXT]
    assert document.labels.tolist() == [0, 0, 0, 0]


def test_no_bos_where_the_tokenizer_has_none_and_never_two(make, bytes_):
    without = make["byte_level"](bos=None)
    assert encode_document(without, {"text": "ab"}, 100).roles.tolist() == [Role.TEXT] * 2
    twice = encode_document(bytes_, {"text": "<s>a"}, 100)
    assert twice.tokens.tolist() == [bytes_.bos_token_id, *bytes_.encode("a")]
    assert twice.roles.tolist() == [Role.TEMPLATE, Role.TEXT]


def test_context_cuts_tokens_roles_and_labels(bytes_):
    document = encode_document(bytes_, {"text": "abcd", "labels": [0, 1, 2, 3, 4]}, 3)
    assert document.tokens.tolist() == [bytes_.bos_token_id, *bytes_.encode("ab")]
    assert document.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2, 3], []])
def test_labels_count_all_tokens(bytes_, labels):
    doc = {"text": "ab", "labels": labels, "name": "x.jsonl, line 7"}
    with pytest.raises(JaxdiffError, match=f"has 3 tokens and {len(labels)} labels") as info:
        encode_document(bytes_, doc, 2)
    assert info.value.where == "x.jsonl, line 7"


@pytest.mark.parametrize("labels", [["a", "b", "c"], [0.5, 1.0, 2.0], [[1], [2], [3]], 3])
def test_labels_are_integers(bytes_, labels):
    with pytest.raises(JaxdiffError, match="list of integers"):
        encode_document(bytes_, {"text": "ab", "labels": labels}, 100)


def test_chat_labels_count_the_template(words):
    chat = [{"role": "user", "content": "cat sat"}]
    document = encode_document(words, {"messages": chat, "labels": [0, 0, 5, 6, 0]}, 4)
    assert document.labels.tolist() == [0, 0, 5, 6]


@pytest.mark.parametrize("doc", [{"text": ""}, {"text": " \n\t"}, {"messages": []}])
def test_empty_documents_have_no_tokens(words, doc):
    assert len(encode_document(words, doc, 10).tokens) == 0


def test_many_at_once_are_as_one_by_one(words):
    chat = [{"role": "user", "content": "cat"}]
    docs = [{"text": "the cat"}, {"messages": chat}, {"text": ""}, {"text": "mat"}] * 3
    for got, doc in zip(encode_documents(words, docs, 10), docs, strict=True):
        want = encode_document(words, doc, 10)
        np.testing.assert_array_equal(got.tokens, want.tokens)
        np.testing.assert_array_equal(got.roles, want.roles)


def test_settings_left_in_the_backend_do_not_matter(make):
    tokenizer = make["byte_level"]()
    want = encode_document(tokenizer, {"text": "abcdef"}, 100).tokens
    tokenizer("abcdef", truncation=True, max_length=2, padding=False)
    np.testing.assert_array_equal(encode_document(tokenizer, {"text": "abcdef"}, 100).tokens, want)
