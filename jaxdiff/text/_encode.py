"""Documents to token ids, with the role and label of each token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxdiff.errors import JaxdiffError
from jaxdiff.text._chat import Span, render
from jaxdiff.text._tokenizer import Tokenizer
from jaxdiff.types import Role


@dataclass(frozen=True)
class Document:
    """One tokenised document.

    Attributes:
        tokens: Token ids.
        roles: `Role` of each token.
        labels: Planted behaviour that is active at the token; 0 is none.
    """

    tokens: Int[np.ndarray, " T"]
    roles: Int[np.ndarray, " T"]
    labels: Int[np.ndarray, " T"]


def encode_document(tokenizer: Tokenizer, doc: Mapping[str, Any], context: int) -> Document:
    """Tokenises one document; see `encode_documents`."""
    return encode_documents(tokenizer, [doc], context)[0]


def encode_documents(
    tokenizer: Tokenizer, docs: Sequence[Mapping[str, Any]], context: int
) -> list[Document]:
    """Tokenises documents.

    A text is `Role.TEXT`, behind the tokenizer's BOS if it has one (`Role.TEMPLATE`); a text
    without anything but white space has no tokens. A chat is what the chat template makes of it,
    and a token that overlaps a message's stripped content has that message's role; all others are
    `Role.TEMPLATE`. A chat without messages has no tokens.

    Args:
        tokenizer: The tokenizer.
        docs: `{"text": str}` or `{"messages": [{"role", "content"}, ...]}`, with optional
            `"labels"`, one integer for each token of the whole document, template and BOS
            included, and optional `"name"` for errors.
        context: Longest document [tokens]; the rest is cut off.

    Returns:
        One `Document` for each, in order.

    Raises:
        JaxdiffError: If labels and tokens differ in number, or a chat cannot be rendered.
    """
    texts: list[str] = []
    spans: list[list[Span] | None] = []
    for doc in docs:
        if "messages" in doc:
            chat = doc["messages"]
            text, found = render(tokenizer, chat, where=_name(doc)) if len(chat) else ("", [])
        else:
            text, found = doc["text"], None
            text = "" if text.isspace() else text
        texts.append(text)
        spans.append(found)
    encodings = _encode(tokenizer, texts, [found is not None for found in spans])
    bos = tokenizer.bos_token_id
    return [
        _document(doc, encoding, found, bos, context)
        for doc, encoding, found in zip(docs, encodings, spans, strict=True)
    ]


def _encode(tokenizer: Tokenizer, texts: list[str], is_chat: list[bool]) -> list[Any]:
    """Encodes all texts at once; offsets cost time, and only chats need them."""
    backend = tokenizer.backend_tokenizer
    # A call of the transformers tokenizer may have left its own settings in the backend.
    backend.no_truncation()
    backend.no_padding()
    chats = [text for text, chat in zip(texts, is_chat, strict=True) if chat]
    plain = [text for text, chat in zip(texts, is_chat, strict=True) if not chat]
    with_offsets = iter(backend.encode_batch(chats, add_special_tokens=False))
    without = iter(backend.encode_batch_fast(plain, add_special_tokens=False))
    return [next(with_offsets) if chat else next(without) for chat in is_chat]


def _document(
    doc: Mapping[str, Any], encoding: Any, spans: list[Span] | None, bos: int | None, context: int
) -> Document:
    tokens = np.array(encoding.ids, np.int32)
    if spans is None:
        roles = np.full(len(tokens), Role.TEXT, np.int32)
        if bos is not None and len(tokens) and tokens[0] != bos:
            tokens = np.concatenate([np.array([bos], np.int32), tokens])
            roles = np.concatenate([np.array([Role.TEMPLATE], np.int32), roles])
        elif bos is not None:
            roles[:1] = Role.TEMPLATE
    else:
        roles = _roles(encoding.offsets, spans)
    labels = _labels(doc, len(tokens))
    return Document(tokens[:context], roles[:context], labels[:context])


def _roles(offsets: Sequence[tuple[int, int]], spans: list[Span]) -> np.ndarray:
    roles = np.full(len(offsets), Role.TEMPLATE, np.int32)
    if not spans or not offsets:
        return roles
    first, stop = np.array(offsets, np.int64).T
    starts, ends, values = (np.array(column, np.int64) for column in zip(*spans, strict=True))
    # The first content that ends behind the token's first character is the only candidate.
    at = np.searchsorted(ends, first, side="right")
    candidate = np.minimum(at, len(spans) - 1)
    overlaps = (at < len(spans)) & (starts[candidate] < stop)
    roles[overlaps] = values[candidate][overlaps]
    return roles


def _labels(doc: Mapping[str, Any], tokens: int) -> np.ndarray:
    if "labels" not in doc:
        return np.zeros(tokens, np.int32)
    labels = np.asarray(doc["labels"])
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise JaxdiffError("labels should be a list of integers", where=_name(doc))
    if len(labels) != tokens:
        raise JaxdiffError(
            f"the document has {tokens} tokens and {len(labels)} labels",
            where=_name(doc),
            fix="labels count every token of the document, also BOS and the chat template's",
        )
    return labels.astype(np.int32)


def _name(doc: Mapping[str, Any]) -> str:
    return str(doc.get("name", "document"))
