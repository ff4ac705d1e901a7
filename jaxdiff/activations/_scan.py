"""Reading all activations in document order, in batches of one size."""

from collections.abc import Iterator

import jax
import numpy as np

from jaxdiff.activations.rows import concatenate
from jaxdiff.activations.source import ActivationSource
from jaxdiff.activations.store import Store
from jaxdiff.types import ActivationBatch


def scan(source: ActivationSource | Store, batch: int) -> Iterator[ActivationBatch]:
    """Yields all rows once, in document order, in batches of one size.

    Rows that may not be used are there too, with mask False. The last batch is filled up with
    rows of zeros whose sequence is -1 and whose mask is False.

    Args:
        source: Where the activations are.
        batch: Rows in a batch [tokens].
    """
    parts: list[ActivationBatch] = []
    held = 0
    for rows in source.in_order():
        start = 0
        while held + len(rows.tokens) - start >= batch:
            stop = start + batch - held
            yield concatenate([*parts, _cut(rows, start, stop)])
            parts, held, start = [], 0, stop
        if start < len(rows.tokens):
            parts.append(_cut(rows, start, len(rows.tokens)))
            held += len(parts[-1].tokens)
    if held:
        yield _fill(concatenate(parts), batch)


def _cut(batch: ActivationBatch, start: int, stop: int) -> ActivationBatch:
    return jax.tree.map(lambda a: a[start:stop], batch)


def _fill(rows: ActivationBatch, batch: int) -> ActivationBatch:
    def pad(array, value):
        extra = ((0, batch - len(array)), *[(0, 0)] * (array.ndim - 1))
        return np.pad(array, extra, constant_values=value)

    return ActivationBatch(
        x=pad(rows.x, 0),
        tokens=pad(rows.tokens, 0),
        roles=pad(rows.roles, 0),
        sequences=pad(rows.sequences, -1),
        positions=pad(rows.positions, 0),
        labels=pad(rows.labels, 0),
        mask=pad(rows.mask, False),
    )
