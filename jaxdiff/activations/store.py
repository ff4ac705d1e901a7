"""A store of activations on a disk or in a bucket."""

import bisect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from jaxtyping import Shaped

from jaxdiff.activations.files import (
    COLUMNS,
    FORMAT,
    Files,
    ShardInfo,
    chunk_key,
    numpy_dtype,
    shard_key,
    zarr_metadata,
)
from jaxdiff.activations.int8 import dequantise
from jaxdiff.activations.normalization import Moments, Normalization
from jaxdiff.errors import JaxdiffError
from jaxdiff.types import ActivationBatch

_FIX = "delete the folder and harvest again"


class Store:
    """Activations written by `write_store`; rows are numbered over all shards.

    What is known about each token is read into memory once, when it is first needed (18 bytes a
    row); activations are read when they are asked for.

    Attributes:
        folder: Where it is.
        site: Where in the models the activations are from.
        shape: (M, D).
        dtype: Dtype of activations that are read.
        stored: Dtype of the files; int8 has a scale for each row and model.
        rows: Rows [tokens].
        documents: Documents that they are from.
        masked: Rows whose mask is False [tokens].
        row_bytes: Bytes of one row's activations in the files [bytes].
        median_norm: Median norm of each model that outliers were measured by; None without.
        moments: Moments of the rows whose mask is True.
        normalization: From `moments`; the identity when the harvest's `normalize` was off.
        blocks: First and last + 1 row of each chunk; no chunk is shared by two shards.
    """

    def __init__(self, files: Files, shards: list[ShardInfo]):
        """For `Store.open`."""
        head = shards[0]
        self.folder = files.name
        self.site = head.site
        self.shape = head.shape
        self.stored = numpy_dtype(head.dtype)
        self.dtype = np.dtype(np.float32) if self.stored == np.int8 else self.stored
        scales = 4 * self.shape[0] if self.stored == np.int8 else 0
        self.row_bytes = math.prod(self.shape) * self.stored.itemsize + scales
        self.rows = sum(shard.rows for shard in shards)
        self.documents = sum(shard.documents for shard in shards)
        self.masked = sum(shard.masked for shard in shards)
        self.median_norm = head.median_norm
        self.moments = _merge([Moments.from_json(shard.moments) for shard in shards])
        self.normalization = (
            self.moments.normalization() if head.normalize else Normalization.identity(head.shape)
        )
        self._files = files
        self._chunk = head.chunk
        self._homes, self.blocks = _blocks(shards)
        self._columns: dict[str, np.ndarray] = {}

    @staticmethod
    def open(folder: str | Path) -> "Store":
        """Opens a store and checks that it is whole.

        Args:
            folder: A path, or the URL of a bucket (gs://, s3://).

        Raises:
            JaxdiffError: If it is no complete store, a file is damaged, missing or truncated, or
                the shards do not belong together.
        """
        files = Files(folder)
        head = _read_shard(files, 0)
        shards = [head, *[_read_shard(files, i) for i in range(1, head.shards)]]
        for shard in shards:
            _check_same(files, head, shard)
            _check_arrays(files, shard)
        return Store(files, shards)

    def read(self, start: int, stop: int) -> ActivationBatch:
        """Returns rows start to stop - 1; those of one local block are mapped, not copied."""
        x, scale = self.read_stored(start, stop)
        columns = {name: self.column(name)[start:stop] for name in COLUMNS}
        return ActivationBatch(x=x if scale is None else dequantise(x, scale), **columns)

    def read_stored(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns activations of rows start to stop - 1 as they are stored, and scales of int8."""
        if not 0 <= start <= stop <= self.rows:
            raise ValueError(f"rows {start} to {stop} are not in a store of {self.rows} rows")
        x = self._read("x", start, stop, self.stored, self.shape)
        if self.stored != np.int8:
            return x, None
        return x, self._read("scale", start, stop, np.dtype(np.float32), self.shape[:1])

    def column(self, name: str) -> Shaped[np.ndarray, " R"]:
        """Returns one thing known about every token of the store, as in `ActivationBatch`.

        Args:
            name: tokens, roles, sequences, positions, labels or mask.
        """
        if name not in self._columns:
            dtype = numpy_dtype(COLUMNS[name])
            parts = [np.zeros(0, dtype)]
            for block, (start, stop) in enumerate(self.blocks):
                raw = self._raw(name, block, 0, (stop - start) * dtype.itemsize)
                parts.append(np.frombuffer(raw, dtype))
            self._columns[name] = np.concatenate(parts)
        return self._columns[name]

    def document(self, row: int, window: int) -> ActivationBatch:
        """Returns the rows of one document around a row, at most `window` on each side.

        The row itself is where `positions` equals `column("positions")[row]`.
        """
        sequences = self.column("sequences")
        low = max(row - window, 0)
        same = np.flatnonzero(sequences[low : row + window + 1] == sequences[row])
        return self.read(low + int(same[0]), low + int(same[-1]) + 1)

    def in_order(self) -> Iterator[ActivationBatch]:
        """Yields all rows in document order, a block at a time."""
        for start, stop in self.blocks:
            yield self.read(start, stop)

    def _read(
        self, name: str, start: int, stop: int, dtype: np.dtype, shape: tuple[int, ...]
    ) -> np.ndarray:
        parts, row = [], start
        size = dtype.itemsize * math.prod(shape)
        block = bisect.bisect_right(self.blocks, (row, self.rows + 1)) - 1
        while row < stop:
            low, high = self.blocks[block]
            end = min(stop, high)
            raw = self._raw(name, block, (row - low) * size, (end - low) * size)
            parts.append(np.frombuffer(raw, dtype).reshape(end - row, *shape))
            row, block = end, block + 1
        if not parts:
            return np.zeros((0, *shape), dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _raw(self, array: str, block: int, start: int, stop: int) -> Any:
        """Returns bytes of a chunk: a map of the file where it is local."""
        shard, chunk = self._homes[block]
        key = chunk_key(shard, array, chunk)
        if self._files.local is None:
            data = self._files.read(key, start, stop)
            found = None if data is None else len(data)
        else:
            # A map of the file gives 7 to 10 GB/s from the page cache where TensorStore's reads
            # of the same array give 0.7 (2 cores).
            data = np.memmap(self._files.local / key, np.uint8, "r")[start:stop]
            found = len(data)
        if found != stop - start:
            raise _damaged(self._files, key, f"it has {found} of {stop - start} bytes")
        return data


def _read_shard(files: Files, shard: int) -> ShardInfo:
    key = shard_key(shard) + "shard.json"
    data = files.read_json(key, _FIX)
    if data is None:
        raise JaxdiffError(
            "this is no complete store: a file is missing",
            where=f"{files.name}/{key}",
            fix="let the harvest finish; run it again if it was stopped",
        )
    try:
        info = ShardInfo.model_validate(data)
        moments = Moments.from_json(info.moments)
        if moments.mean.shape != info.shape or moments.m2.shape != info.shape[:1]:
            raise ValueError("the moments have another shape than the activations")
    except (pydantic.ValidationError, ValueError, KeyError, TypeError) as error:
        raise _damaged(files, key, str(error)) from None
    if info.format != FORMAT:
        raise _damaged(files, key, f"format {info.format} is not {FORMAT}")
    return info


def _check_same(files: Files, head: ShardInfo, shard: ShardInfo) -> None:
    for name in ("site", "shape", "dtype", "chunk", "normalize", "shards"):
        if getattr(shard, name) != getattr(head, name):
            found = f"{name} is {getattr(shard, name)}, in shard 0 it is {getattr(head, name)}"
            raise _damaged(files, shard_key(shard.shard) + "shard.json", found)


def _check_arrays(files: Files, shard: ShardInfo) -> None:
    """Checks metadata and chunks of every array; sizes of chunks where the files are local."""
    listed = files.keys(shard_key(shard.shard)) if files.local is None else set()
    for name, (dtype, chunk) in shard.arrays().items():
        key = f"{shard_key(shard.shard)}{name}/zarr.json"
        found = files.read_json(key, _FIX) or {}
        for field, wanted in zarr_metadata(shard.rows, dtype, chunk).items():
            if found.get(field) != wanted:
                raise _damaged(files, key, f"{field} is {found.get(field)}, not {wanted}")
        size = int(np.prod(chunk)) * numpy_dtype(dtype).itemsize
        for i in range(shard.chunks):
            key = chunk_key(shard.shard, name, i)
            if files.local is None:
                has = size if key in listed else None
            else:
                path = files.local / key
                has = path.stat().st_size if path.is_file() else None
            if has != size:
                state = "it is missing" if has is None else f"it has {has} of {size} bytes"
                raise _damaged(files, key, state)


def _damaged(files: Files, key: str, found: str) -> JaxdiffError:
    return JaxdiffError(f"the store is damaged: {found}", where=f"{files.name}/{key}", fix=_FIX)


def _blocks(shards: list[ShardInfo]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns (shard, chunk) and (first, last + 1) row of every block, in order."""
    homes, blocks, row = [], [], 0
    for shard in shards:
        for chunk in range(shard.chunks):
            rows = min(shard.chunk, shard.rows - chunk * shard.chunk)
            homes.append((shard.shard, chunk))
            blocks.append((row, row + rows))
            row += rows
    return homes, blocks


def _merge(parts: list[Moments]) -> Moments:
    count = np.array([float(part.count) for part in parts[1:]])
    if not len(count):
        return parts[0]
    return parts[0].merge(
        count, np.stack([p.mean for p in parts[1:]]), np.stack([p.m2 for p in parts[1:]])
    )
