"""Documents in their mixed, shuffled order, as batches of token rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import grain
import numpy as np

from jaxdiff.config import SourceConfig, TextConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.text._assemble import Placed, assemble
from jaxdiff.text._encode import encode_documents
from jaxdiff.text._packing import PackedBatches
from jaxdiff.text._sources import open_source
from jaxdiff.text._tokenizer import Tokenizer
from jaxdiff.types import TokenBatch


def count(sources: Sequence[SourceConfig]) -> int:
    """Returns how many documents the mixture has: it ends where its scarcest corpus does.

    Documents without text count too, so that the number needs no tokenizer.

    Raises:
        JaxdiffError: If a corpus cannot be opened or is empty.
    """
    return len(_mixture(sources, seed=0))


def splits(config: TextConfig) -> dict[str, tuple[int, int]]:
    """Divides the mixed, shuffled documents into test, validation and train ranges, in that order.

    More training documents leave the other two splits as they are.

    Args:
        config: The corpora, and how many documents each split should have.

    Returns:
        `(start, stop)` for `batches`, by the split's name.

    Raises:
        JaxdiffError: If the corpora have fewer documents than the splits ask for.
    """
    sizes = {
        "test": config.test_sequences,
        "validation": config.validation_sequences,
        "train": config.train_sequences,
    }
    have, want = count(config.sources), sum(sizes.values())
    if want > have:
        asked = " + ".join(f"{size} for {name}" for name, size in sizes.items())
        raise JaxdiffError(
            f"the corpora give {have} documents, the splits ask for {want}: {asked}",
            where=_census(config.sources),
            fix="ask for fewer (text.train_sequences and the like), or add text",
        )
    ranges, start = {}, 0
    for name, size in sizes.items():
        ranges[name] = (start, start + size)
        start += size
    return ranges


def batches(
    sources: Sequence[SourceConfig],
    tokenizer: Tokenizer,
    *,
    context: int,
    batch: int,
    pack: bool = False,
    seed: int,
    start: int,
    stop: int,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.IterDataset:
    """Reads one epoch of a range of documents as token rows of fixed shape.

    Each corpus is shuffled, they are mixed by weight, and the mixture is shuffled, all by index:
    the same sources and seed give the same order. Without packing, each document has a row of its
    own (one without tokens leaves it to padding), and all shards have equally many batches. With
    packing, shards may differ in their number of batches.

    Args:
        sources: Corpora.
        tokenizer: The tokenizer.
        context: Length of a row [tokens]; longer documents are cut.
        batch: Rows of a batch, in this shard.
        pack: Put several documents into a row.
        seed: Seed of the order.
        start: First document, in the mixed order.
        stop: The document after the last one.
        shard_index: Which of the shards to read; shard i has the documents start + i + n * count.
        shard_count: Shards that the range is divided into.

    Returns:
        A dataset of `TokenBatch`es of [batch, context]; its iterators have `get_state` and
        `set_state`.

    Raises:
        JaxdiffError: If a corpus cannot be opened, or has fewer documents than `stop`.
    """
    if not 0 <= start <= stop or not 0 <= shard_index < shard_count:
        raise ValueError(f"no such range or shard: {start=} {stop=} {shard_index=} {shard_count=}")
    documents = _mixture(sources, seed)
    if stop > len(documents):
        raise JaxdiffError(
            f"the corpora give {len(documents)} documents, {start} to {stop} are asked for",
            where=_census(sources),
            fix="ask for fewer documents, or add text",
        )
    shard = _Shard(documents, tokenizer, context, range(start + shard_index, stop, shard_count))
    if pack:
        return PackedBatches(
            shard.encode, documents=len(shard.indices), batch=batch, context=context
        )
    # Equally many in all shards, so that none of them waits for another at the end.
    number = -(-len(range(start, stop, shard_count)) // batch)
    return (
        grain.MapDataset.range(number)
        .map(_Padded(shard, batch))
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    )


@dataclass(frozen=True)
class _Shard:
    """The documents of one shard, by their number in it."""

    documents: grain.MapDataset
    tokenizer: Tokenizer
    context: int
    indices: range

    def encode(self, numbers: Sequence[int]) -> list[Placed]:
        indices = [self.indices[number] for number in numbers]
        docs = [cast(dict[str, Any], self.documents[index]) for index in indices]
        encoded = encode_documents(self.tokenizer, docs, self.context)
        return list(zip(indices, encoded, strict=True))


@dataclass(frozen=True)
class _Padded:
    """Batch number to batch: one document a row."""

    shard: _Shard
    batch: int

    def __call__(self, number: int) -> TokenBatch:
        first = number * self.batch
        stop = min(first + self.batch, len(self.shard.indices))
        placed = self.shard.encode(range(first, stop))
        return assemble([[p] for p in placed], self.batch, self.shard.context)


def _mixture(sources: Sequence[SourceConfig], seed: int) -> grain.MapDataset:
    """Shuffling before mixing draws from the whole of a corpus whose share is smaller than it.

    Shuffling after it keeps the mixture's period from falling together with that of the shards.
    """
    if not sources:
        raise JaxdiffError("there is no corpus", where="text.sources", fix="name at least one")
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(len(sources) + 1)]
    shuffled = [
        _corpus(source).shuffle(seed=s) for source, s in zip(sources, seeds[1:], strict=True)
    ]
    if len(shuffled) == 1:
        return shuffled[0]
    mixed = grain.MapDataset.mix(shuffled, weights=[source.weight for source in sources])
    return mixed.shuffle(seed=seeds[0])


def _corpus(source: SourceConfig) -> grain.MapDataset:
    parts = [grain.MapDataset.source(part) for part in open_source(source)]
    return parts[0] if len(parts) == 1 else grain.MapDataset.concatenate(parts)


def _census(sources: Sequence[SourceConfig]) -> str:
    return "; ".join(
        f"{source.path} has {len(_corpus(source))} (weight {source.weight:g})" for source in sources
    )
