"""Pytrees as bytes: JSON for the structure, safetensors for the leaves, in one file.

The JSON is the file's metadata under a key of its format. Only classes of a registry are written
and read, field by field: nothing in a file is ever executed.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.edits import _codec
from jaxdiff.errors import JaxdiffError
from jaxdiff.manifest import write_atomically


@dataclass(frozen=True)
class Format:
    """What a kind of file holds.

    Attributes:
        key: Key of the JSON in the file's metadata.
        version: Version of the format.
        noun: What errors call its content.
        writer: What writes it, for errors.
        kinds: Classes that may be in it, by name.
        items: Classes that its items are of.
    """

    key: str
    version: int
    noun: str
    writer: str
    kinds: _codec.Registry
    items: tuple[type, ...]

    def save(self, items: Sequence[Any], path: str | Path) -> None:
        """Writes a file, at once or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, self.dumps(items))

    def load(self, path: str | Path) -> tuple[Any, ...]:
        """Reads what `save` wrote; arrays stay on the host until they are used."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise JaxdiffError(
                f"{self.noun} cannot be read: {error.strerror}", where=path
            ) from None
        return self.loads(data, where=path)

    def dumps(self, items: Sequence[Any]) -> bytes:
        """Returns the bytes of a file; equal items give equal bytes."""
        from safetensors.numpy import save as serialise

        tree, arrays = self._encoded(items)
        content = {"version": self.version, "items": tree}
        return serialise(arrays, {self.key: _canonical(content)})

    def loads(self, data: bytes, *, where: object) -> tuple[Any, ...]:
        """Returns what `dumps` was given; safe with bytes from anyone."""
        from safetensors import SafetensorError, deserialize

        try:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            content = json.loads(header["__metadata__"][self.key])
            version, tree = content["version"], content["items"]
            arrays = {name: _array(**found) for name, found in deserialize(data)}
        except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise JaxdiffError(
                f"this is no file of {self.noun}: {type(error).__name__}: {error}",
                where=where,
                fix=f"write it with {self.writer}",
            ) from None
        if version != self.version:
            raise JaxdiffError(
                f"{self.noun} of version {version!r} of the format, this jaxdiff reads "
                f"{self.version}",
                where=where,
                fix="write it again, or install the jaxdiff that wrote it",
            )
        try:
            return _codec.decode(tree, arrays, self.kinds, self.items)
        except _codec.Refused as error:
            raise JaxdiffError(f"{self.noun} cannot be read: {error}", where=where) from None

    def content_hash(self, items: Sequence[Any]) -> str:
        """Returns a hash of structure and leaves; 16 hex digits, the same in every process."""
        # A number of Python's becomes an array when it is put on a device.
        items = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, (int, float)) else x, items)
        tree, arrays = self._encoded(items)
        digest = hashlib.sha256(_canonical(tree).encode())
        for name, array in arrays.items():
            digest.update(f"{name}:{array.dtype.name}{list(array.shape)}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def _encoded(self, items: Sequence[Any]) -> tuple[list[Any], dict[str, np.ndarray]]:
        right = isinstance(items, Sequence) and all(isinstance(i, self.items) for i in items)
        if not right:
            kinds = ", ".join(kind.__name__ for kind in self.items)
            raise JaxdiffError(
                f"{type(items).__name__} cannot be saved: {self.noun} are made of {kinds}",
                fix="put one into a tuple: (edit,)",
            )
        return _codec.encode(items, self.kinds)


def _array(dtype: str, shape: Sequence[int], data: bytes | bytearray) -> np.ndarray:
    if dtype not in _DTYPES:
        raise ValueError(f"an array of {dtype}")
    # A copy, because what is made of bytes cannot be written to.
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape).copy()


_FLOATS = {"F16": np.float16, "BF16": jnp.bfloat16, "F32": np.float32, "F64": np.float64}
_DTYPES = _FLOATS | {
    "BOOL": np.bool_,
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
