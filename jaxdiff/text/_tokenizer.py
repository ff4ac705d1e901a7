"""Loading a tokenizer, and what its tokens look like to a person."""

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxdiff.errors import JaxdiffError

Tokenizer = Any
"""A transformers tokenizer over a `tokenizers` backend; not named, so as not to import it here."""


def load_tokenizer(name_or_path: str | Path, revision: str | None = None) -> Tokenizer:
    """Loads a tokenizer with its chat template.

    Args:
        name_or_path: Directory with tokenizer.json, or a name on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.

    Returns:
        A transformers tokenizer with a `backend_tokenizer` that neither cuts nor pads.

    Raises:
        JaxdiffError: If it is missing, incomplete, damaged, or has no fast implementation.
    """
    # transformers says at its first import that torch is missing; here that is no news.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    where = Path(name_or_path)
    local = where.is_dir()
    if not local and (where.is_absolute() or str(name_or_path).startswith((".", "~"))):
        raise JaxdiffError("there is no such directory", where=where)
    if local and not any((where / f).is_file() for f in ("tokenizer.json", "tokenizer.model")):
        raise JaxdiffError(
            "this directory has no tokenizer.json",
            where=where,
            fix="copy the model's tokenizer files there, or name another tokenizer",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(name_or_path), revision=revision or "main", local_files_only=local
        )
    # A damaged tokenizer.json raises a bare Exception.
    except Exception as error:
        raise JaxdiffError(
            f"the tokenizer cannot be loaded: {type(error).__name__}: {error}",
            where=name_or_path,
            fix="give a directory with complete tokenizer files, or a hub name that is in reach",
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise JaxdiffError(
            "this tokenizer has no fast implementation (tokenizer.json)", where=name_or_path
        )
    backend.no_truncation()
    backend.no_padding()
    return tokenizer


def describe(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """Returns what to show for each token id.

    A leading space is a space, whatever the tokenizer writes for it. Bytes that are no text by
    themselves are shown as `<0xE2>`, ids that the tokenizer does not know as `<id 17>`.

    Args:
        tokenizer: The tokenizer.
        ids: Token ids.
    """
    ids = [int(i) for i in ids]
    distinct = sorted(set(ids))
    pieces = tokenizer.backend_tokenizer
    added = tokenizer.added_tokens_decoder
    byte_level = "ByteLevel" in repr(pieces.decoder)
    show = _show_byte_level if byte_level else _show_piece
    shown = {}
    for i in distinct:
        piece = pieces.id_to_token(i) if i >= 0 else None
        shown[i] = f"<id {i}>" if piece is None else piece if i in added else show(piece)
    return [shown[i] for i in ids]


def _show_piece(piece: str) -> str:
    """SentencePiece writes a space as U+2581 and a lone byte as <0x0A>; others are text already."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        byte = int(piece[3:5], 16)
        return chr(byte) if byte < 128 else piece
    return piece.replace("\u2581", " ")


def _show_byte_level(piece: str) -> str:
    table = _byte_table()
    if any(letter not in table for letter in piece):
        return piece
    raw = bytes(table[letter] for letter in piece)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(chr(b) if b < 128 else f"<0x{b:02X}>" for b in raw)


@functools.cache
def _byte_table() -> dict[str, int]:
    """Byte-level BPE's letter for each byte: printable ones themselves, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = (byte for byte in range(256) if byte not in printable)
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + n): byte for n, byte in enumerate(rest)}
