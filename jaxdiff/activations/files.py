"""Files of a store, on a disk or in a bucket, and the layout of one shard of it.

A store is a folder of shards, one a process wrote. A shard holds one Zarr v3 array of activations
and one for each thing that is known about a token, all cut into the same blocks of rows:

    shard-00000/shard.json           what the shard is; written last
    shard-00000/x/zarr.json          [rows, M, D]
    shard-00000/x/c/0/0/0            rows 0 to chunk - 1, raw little-endian; the last one is padded
    shard-00000/scale/c/0/0          [rows, M], beside an x of int8: activations are x * scale
    shard-00000/tokens/c/0           the tokens of the same rows; and so on
    shard-00000/progress.json        where an unfinished harvest goes on
"""

import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pydantic

from jaxdiff.errors import JaxdiffError

COLUMNS = {
    "tokens": "int32",
    "roles": "int8",
    "sequences": "int32",
    "positions": "int32",
    "labels": "int32",
    "mask": "bool",
}
FORMAT = 1

if sys.byteorder != "little":
    raise ImportError("jaxdiff.activations stores raw little-endian rows; this machine is not")


class ShardInfo(pydantic.BaseModel):
    """What one process wrote; the content of `shard.json`."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    format: int
    site: str
    shape: tuple[int, int]
    dtype: str
    chunk: int
    normalize: bool
    shard: int
    shards: int
    rows: int = 0
    documents: int = 0
    masked: int = 0
    median_norm: tuple[float, ...] | None = None
    moments: dict[str, Any] = {}

    @property
    def chunks(self) -> int:
        """Returns the number of chunk files of each array."""
        return -(-self.rows // self.chunk)

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Returns dtype and chunk shape of each array."""
        columns = {name: (dtype, (self.chunk,)) for name, dtype in COLUMNS.items()}
        scale = {"scale": ("float32", (self.chunk, self.shape[0]))} if self.dtype == "int8" else {}
        return {"x": (self.dtype, (self.chunk, *self.shape)), **scale, **columns}


def numpy_dtype(name: str) -> np.dtype:
    """Returns the NumPy dtype of a Zarr data type."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def chunk_key(shard: int, array: str, chunk: int) -> str:
    """Returns the path of a chunk inside a store."""
    return f"{shard_key(shard)}{array}/c/{chunk}" + {"x": "/0/0", "scale": "/0"}.get(array, "")


def shard_key(shard: int) -> str:
    """Returns the path of a shard inside a store, with its slash."""
    return f"shard-{shard:05d}/"


class Files:
    """Reads and writes files by name under a folder or a bucket URL.

    Args:
        folder: A path, or a URL that TensorStore knows (gs://, s3://, file://, memory://).
    """

    def __init__(self, folder: str | Path):
        import tensorstore as ts

        text = str(folder)
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        self.local = None if "://" in text else Path(text).absolute()
        self.name = text if self.local is None else str(self.local)
        root = self.name.rstrip("/") + "/"
        self._spec = {"driver": "file", "path": root} if self.local else root
        try:
            self._store = ts.KvStore.open(self._spec, context=_context()).result()
        except ValueError as error:
            raise JaxdiffError(f"this location cannot be opened: {error}", where=folder) from None

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """Returns a file's bytes start to stop; None when there is no such file."""
        part = None if start is None and stop is None else slice(start, stop)
        try:
            result = self._store.read(key, byte_range=part).result()
        except (ValueError, OSError) as error:
            raise JaxdiffError(f"reading failed: {error}", where=f"{self.name}/{key}") from error
        return result.value if result.state == "value" else None

    def read_json(self, key: str, fix: str) -> Any:
        """Returns the content of a JSON file; None when there is no such file."""
        data = self.read(key)
        try:
            return None if data is None else json.loads(data)
        except ValueError as error:
            raise JaxdiffError(
                f"the file is damaged: {error}", where=f"{self.name}/{key}", fix=fix
            ) from None

    def write(self, key: str, data: bytes) -> Any:
        """Starts writing a file, which appears only when it is complete; returns a future."""
        return self._store.write(key, data)

    def write_json(self, key: str, data: Any) -> Any:
        """Starts writing a JSON file; returns a future."""
        return self.write(key, json.dumps(data, allow_nan=False).encode())

    def delete(self, key: str) -> None:
        """Removes a file if it is there."""
        self._store.write(key, None).result()

    def keys(self, prefix: str) -> set[str]:
        """Returns the names of all files that begin with a prefix."""
        import tensorstore as ts

        stop = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        found = self._store.list(ts.KvStore.KeyRange(prefix, stop)).result()
        return {key.decode() for key in found}

    def create_array(self, key: str, info: dict[str, Any]) -> None:
        """Writes the metadata of a Zarr array whose chunks are there already."""
        import tensorstore as ts

        kvstore = self._store.spec().to_json()
        kvstore = {**kvstore, "path": kvstore.get("path", "") + key + "/"}
        spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": info}
        ts.open(spec, create=True, open=True, context=_context()).result()


def zarr_metadata(rows: int, dtype: str, chunk: tuple[int, ...]) -> dict[str, Any]:
    """Returns the part of an array's `zarr.json` that decides how its bytes are read."""
    one_byte = numpy_dtype(dtype).itemsize == 1
    codec = {"name": "bytes"} if one_byte else _LITTLE
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *chunk[1:]],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [codec],
    }


_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_contexts: list[Any] = []


def _context() -> Any:
    """Returns the TensorStore context that all stores share (memory:// lives in it)."""
    import tensorstore as ts

    if not _contexts:
        _contexts.append(ts.Context())
    return _contexts[0]
