"""Documents of Parquet files."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.errors import JaxdiffError
from jaxdiff.text._rows import find_column, to_document

CACHE = 2**30
"""Decoded row groups that one source keeps in memory [bytes]."""


class ParquetSource:
    """The documents of some Parquet files, one a row, in the order of the files.

    A row group is decoded whole and kept while there is room, so corpora of up to about 1 GiB of
    text are quick in any order. Larger ones are quicker as .jsonl files or as a Hugging Face
    dataset, which is memory-mapped.

    Args:
        paths: The files.
        column: Column of the documents; found by name when None.

    Raises:
        JaxdiffError: If pyarrow is missing, a file cannot be read, or a column is missing.
    """

    def __init__(self, paths: tuple[Path, ...], column: str | None = None):
        self.paths = paths
        self._columns: list[str] = []
        # Of each row group: its file, its number there, and the number of its first row there.
        self._groups: list[tuple[int, int, int]] = []
        sizes = [0]
        for at, path in enumerate(paths):
            file = _open(path)
            names = file.schema_arrow.names
            self._columns.append(find_column(names, column, where=path))
            row = 0
            for group in range(file.metadata.num_row_groups):
                self._groups.append((at, group, row))
                sizes.append(file.metadata.row_group(group).num_rows)
                row += sizes[-1]
        self._starts = np.cumsum(np.array(sizes, np.int64))
        self._reset()

    def _reset(self) -> None:
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_cache", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        at, _, first = self._groups[group]
        row = int(index - self._starts[group])
        table = self._table(group)
        values = {name: table.column(name)[row].as_py() for name in table.column_names}
        where = f"{self.paths[at]}, row {first + row}"
        return to_document(values, self._columns[at], where=where)

    def _table(self, group: int) -> Any:
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
            at, number, _ = self._groups[group]
            file = _open(self.paths[at])
            columns = [self._columns[at]]
            if "labels" in file.schema_arrow.names:
                columns.append("labels")
            table = file.read_row_group(number, columns=columns, use_threads=False)
            self._cache[group] = table.combine_chunks()
            while len(self._cache) > 1 and sum(t.nbytes for t in self._cache.values()) > CACHE:
                self._cache.popitem(last=False)
            return self._cache[group]

    def __repr__(self) -> str:
        return f"ParquetSource({len(self.paths)} files, documents={len(self)})"


def _open(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise JaxdiffError(
            "reading Parquet files needs pyarrow",
            where=path,
            fix="pip install 'jaxdiff[datasets]'",
        ) from None
    try:
        return parquet.ParquetFile(path, memory_map=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise JaxdiffError(f"this is no Parquet file: {error}", where=path) from None
