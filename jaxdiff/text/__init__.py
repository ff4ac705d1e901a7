"""Corpora to token batches: files and datasets, chat templates, token roles, splits, shards.

    tokenizer = load_tokenizer("google/gemma-2-2b-it")
    start, stop = splits(config)["train"]
    rows = batches(
        config.sources, tokenizer, context=1024, batch=16, seed=0, start=start, stop=stop
    )

Iterating gives `TokenBatch`es; `iter(rows)` has Grain's `get_state()` and `set_state()`.
"""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazy

if TYPE_CHECKING:
    from jaxdiff.text._batches import batches as batches
    from jaxdiff.text._batches import count as count
    from jaxdiff.text._batches import splits as splits
    from jaxdiff.text._encode import Document as Document
    from jaxdiff.text._encode import encode_document as encode_document
    from jaxdiff.text._encode import encode_documents as encode_documents
    from jaxdiff.text._sources import fingerprint as fingerprint
    from jaxdiff.text._sources import open_source as open_source
    from jaxdiff.text._tokenizer import Tokenizer as Tokenizer
    from jaxdiff.text._tokenizer import describe as describe
    from jaxdiff.text._tokenizer import load_tokenizer as load_tokenizer

# Grain is imported by the first use of `batches`, not by `import jaxdiff.text`.
_HOMES = {
    "Document": "_encode",
    "Tokenizer": "_tokenizer",
    "batches": "_batches",
    "count": "_batches",
    "describe": "_tokenizer",
    "encode_document": "_encode",
    "encode_documents": "_encode",
    "fingerprint": "_sources",
    "load_tokenizer": "_tokenizer",
    "open_source": "_sources",
    "splits": "_batches",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy(__name__, _HOMES)
