"""Documents side by side in the rows of one fixed-shape batch."""

from collections.abc import Sequence

import numpy as np

from jaxdiff.text._encode import Document
from jaxdiff.types import TokenBatch

Placed = tuple[int, Document]
"""A document's index in the mixed order, and the document."""


def assemble(rows: Sequence[Sequence[Placed]], batch: int, context: int) -> TokenBatch:
    """Lays documents into rows.

    Args:
        rows: Documents of each row, together at most `context` tokens; missing rows are padding.
        batch: Rows of the result.
        context: Tokens of a row.

    Returns:
        Arrays of shape [batch, context], int32.
    """
    shape = (batch, context)
    tokens, roles, positions, labels = (np.zeros(shape, np.int32) for _ in range(4))
    sequences = np.full(shape, -1, np.int32)
    for r, row in enumerate(rows):
        start = 0
        for index, document in row:
            stop = start + len(document.tokens)
            tokens[r, start:stop] = document.tokens
            roles[r, start:stop] = document.roles
            labels[r, start:stop] = document.labels
            sequences[r, start:stop] = index
            positions[r, start:stop] = np.arange(stop - start)
            start = stop
    return TokenBatch(tokens, roles, sequences, positions, labels)
