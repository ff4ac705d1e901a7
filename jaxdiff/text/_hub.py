"""Documents of Hugging Face datasets."""

import functools
from pathlib import Path
from typing import Any

from jaxdiff.errors import JaxdiffError
from jaxdiff.text._rows import find_column, to_document

PREFIX = "hf:"


class HubSource:
    """The documents of one split of a Hugging Face dataset, memory-mapped from its local cache.

    Args:
        path: `hf:NAME`, `hf:NAME:CONFIGURATION`, or `hf:DIR` with what `save_to_disk` wrote.
        split: Name of the split.
        column: Column of the documents; found by name when None.

    Raises:
        JaxdiffError: If `datasets` is missing, or the dataset, split or column is.
    """

    def __init__(self, path: str, split: str, column: str | None = None):
        self.path = path
        dataset = _load(path, split)
        self._column = find_column(dataset.column_names, column, where=path)
        names = [name for name in (self._column, "labels") if name in dataset.column_names]
        # A row is decoded with all its columns: leave out those that nobody reads.
        self._dataset = dataset.select_columns(names)
        self.fingerprint: str = dataset._fingerprint

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        where = f"{self.path}, row {index}"
        return to_document(self._dataset[int(index)], self._column, where=where)

    def __repr__(self) -> str:
        return f"HubSource({self.path}, documents={len(self)})"


@functools.lru_cache(maxsize=16)
def _load(path: str, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise JaxdiffError(
            "Hugging Face datasets need the package `datasets`",
            where=path,
            fix="pip install 'jaxdiff[datasets]'",
        ) from None
    name, _, configuration = path.removeprefix(PREFIX).partition(":")
    try:
        if Path(name).is_dir() and any(
            (Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json")
        ):
            loaded = datasets.load_from_disk(name)
            return loaded[split] if isinstance(loaded, dict) else loaded
        return datasets.load_dataset(name, configuration or None, split=split)
    # The hub, the cache and the builder scripts each have errors of their own.
    except Exception as error:
        raise JaxdiffError(
            f"the dataset cannot be loaded: {type(error).__name__}: {error}",
            where=f"{path}, split {split}",
            fix="check the name, the configuration (hf:NAME:CONFIGURATION), the split, the network",
        ) from error
