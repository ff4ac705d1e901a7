"""Edits and taps as bytes: JSON for the structure, safetensors for the leaves, in one file.

The JSON is the file's metadata under `jaxdiff.edits`. Only classes of a registry are written and
read, field by field: nothing in a file is ever executed.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.edits import _codec
from jaxdiff.edits._codec import Item
from jaxdiff.errors import JaxdiffError
from jaxdiff.manifest import write_atomically

_KEY, _VERSION = "jaxdiff.edits", 1


def save(items: Sequence[Item], path: str | Path) -> None:
    """Writes edits and taps to a `.safetensors` file.

    Raises:
        JaxdiffError: If one is made of classes that jaxdiff does not have.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, dumps(items))


def load(path: str | Path) -> tuple[Item, ...]:
    """Reads what `save` wrote; arrays stay on the host until they are used.

    Raises:
        JaxdiffError: If the file is missing or damaged, or has a class, field or version that is
            not known here.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise JaxdiffError(f"the edits cannot be read: {error.strerror}", where=path) from None
    return loads(data, where=path)


def dumps(items: Sequence[Item]) -> bytes:
    """Returns edits and taps as the bytes of a `.safetensors` file; equal ones give equal bytes.

    Raises:
        JaxdiffError: If one is made of classes that jaxdiff does not have.
    """
    from safetensors.numpy import save as serialise

    tree, arrays = _codec.encode(items)
    return serialise(arrays, {_KEY: _canonical({"version": _VERSION, "items": tree})})


def loads(data: bytes, *, where: object = "edits") -> tuple[Item, ...]:
    """Returns what `dumps` was given; safe with bytes from anyone.

    Args:
        data: The bytes.
        where: What errors call them.

    Raises:
        JaxdiffError: If they are damaged, or have a class, field or version that is not known.
    """
    from safetensors import SafetensorError, deserialize

    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        content = json.loads(header["__metadata__"][_KEY])
        version, tree = content["version"], content["items"]
        arrays = {name: _array(**found) for name, found in deserialize(data)}
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise JaxdiffError(
            f"this is no file of edits: {type(error).__name__}: {error}",
            where=where,
            fix="write it with edits.save",
        ) from None
    if version != _VERSION:
        raise JaxdiffError(
            f"these edits have version {version!r} of the format, this jaxdiff reads {_VERSION}",
            where=where,
            fix="write them again, or install the jaxdiff that wrote them",
        )
    return _codec.decode(tree, arrays, where=where)


def content_hash(items: Sequence[Item]) -> str:
    """Returns a hash of structure and leaves; 16 hex digits, the same in every process.

    It is the same wherever the leaves are, on the host or on devices, and another one for another
    value or another dtype, as programs see it.

    Raises:
        JaxdiffError: If one is made of classes that jaxdiff does not have.
    """
    # A number of Python's becomes an array when it is put on a device.
    items = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, (int, float)) else x, items)
    tree, arrays = _codec.encode(items)
    digest = hashlib.sha256(_canonical(tree).encode())
    for name, array in arrays.items():
        digest.update(f"{name}:{array.dtype.name}{list(array.shape)}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


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
