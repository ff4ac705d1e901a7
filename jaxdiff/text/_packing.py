"""Packing several documents into a row."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import grain

from jaxdiff.text._assemble import Placed, assemble
from jaxdiff.types import TokenBatch

_READ = 64
"""Documents that are tokenised together."""


class PackedBatches(grain.IterDataset):
    """Batches in which a row holds several documents, whole and in order of arrival.

    First fit: each document goes into the first row that has room; the one that fits nowhere opens
    the next batch. So a batch holds a contiguous range of documents, and the position is one
    number.

    Args:
        encode: Tokenises the documents with the given numbers.
        documents: How many there are.
        batch: Rows of a batch.
        context: Tokens of a row; no document is longer.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[int]], list[Placed]],
        *,
        documents: int,
        batch: int,
        context: int,
    ):
        super().__init__()
        self._encode = encode
        self._documents = documents
        self._shape = (batch, context)

    def __iter__(self) -> "PackedIterator":
        return PackedIterator(self._encode, self._documents, self._shape)

    def __str__(self) -> str:
        return f"PackedBatches(documents={self._documents}, shape={self._shape})"


class PackedIterator(grain.DatasetIterator):
    """Position in `PackedBatches`: the number of the first document that was not given out."""

    def __init__(
        self,
        encode: Callable[[Sequence[int]], list[Placed]],
        documents: int,
        shape: tuple[int, int],
    ):
        super().__init__()
        self._encode = encode
        self._documents = documents
        self._shape = shape
        self._next = 0
        self._ahead: deque[Placed] = deque()

    def __next__(self) -> TokenBatch:
        batch, context = self._shape
        rows: list[list[Placed]] = [[] for _ in range(batch)]
        room = [context] * batch
        while (placed := self._peek()) is not None:
            length = len(placed[1].tokens)
            row = next((r for r in range(batch) if length <= room[r]), None)
            if row is None:
                break
            rows[row].append(placed)
            room[row] -= length
            self._ahead.popleft()
            self._next += 1
        # Documents without tokens at the end make no batch of their own.
        if sum(room) == batch * context:
            raise StopIteration
        return assemble(rows, batch, context)

    def _peek(self) -> Placed | None:
        if not self._ahead:
            first = self._next
            self._ahead.extend(self._encode(range(first, min(first + _READ, self._documents))))
        return self._ahead[0] if self._ahead else None

    def get_state(self) -> dict[str, Any]:
        """Returns the position, as JSON."""
        return {"next_document": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` returned."""
        self._next = state["next_document"]
        self._ahead.clear()
