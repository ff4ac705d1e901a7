"""Tensors in torch's zip files, without torch and without running what a pickle asks for.

A `.pt` file is a zip archive: `data.pkl` says how tensors lie in storages, and `data/KEY` are the
raw bytes of a storage. An ordinary unpickler would call any function that the file names. This one
knows the few names that tensors need, and each stands for a function of this module.
Format: torch.save since torch 1.6.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxdiff.errors import JaxdiffError

_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_STORAGES = {dtype: name for name, dtype in _DTYPES.items()}


def read(path: Path) -> dict[str, Any]:
    """Reads what `torch.save` wrote of a mapping of tensors, numbers, strings and mappings.

    Args:
        path: The file.

    Returns:
        The mapping, with NumPy arrays for tensors; bfloat16 stays bfloat16.

    Raises:
        JaxdiffError: If the file is no such archive, is damaged, or asks for anything else.
    """
    if not zipfile.is_zipfile(path):
        raise JaxdiffError(
            "this is no zip archive of torch, or it is cut off",
            where=path,
            fix="get it again; files of torch before 1.6 must be saved again by a newer torch",
        )
    try:
        with zipfile.ZipFile(path) as archive:
            value = _Reader(archive).load()
    except (
        *(zipfile.BadZipFile, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError),
        *(IndexError, AttributeError, OverflowError, MemoryError),
    ) as error:
        raise JaxdiffError(
            f"the file cannot be read: {type(error).__name__}: {error}",
            where=path,
            fix="download or save it again, as a state dict of plain tensors",
        ) from None
    if not isinstance(value, Mapping):
        raise JaxdiffError(
            f"the file holds a {type(value).__name__}, not named tensors", where=path
        )
    return dict(value)


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile):
        entries = {info.filename: info for info in archive.infolist()}
        top = next((n.removesuffix("data.pkl") for n in entries if n.endswith("/data.pkl")), None)
        if top is None:
            raise ValueError("it has no data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise ValueError("its entries are compressed, which torch never does")
        if f"{top}byteorder" in entries and archive.read(f"{top}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        super().__init__(io.BytesIO(archive.read(f"{top}data.pkl")))
        self._archive, self._top, self._read = archive, top, {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Returns what a name stands for; never imports."""
        if module_name == "torch" and global_name in _DTYPES:
            return global_name
        if (module_name, global_name) in _KNOWN:
            return _KNOWN[module_name, global_name]
        raise pickle.UnpicklingError(
            f"it asks for {module_name}.{global_name}, and only plain tensors are read"
        )

    def persistent_load(self, pid: Any, /) -> np.ndarray:
        """Returns a storage as a flat array; tensors that share one share its memory."""
        kind, name, key, _, size = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"it asks for a {kind}")
        if (name, key) not in self._read:
            flat = np.frombuffer(self._archive.read(f"{self._top}data/{key}"), _DTYPES[name])
            if flat.size != size:
                raise ValueError(f"storage {key} has {flat.size} numbers instead of {size}")
            self._read[name, key] = flat
        return self._read[name, key]


def _tensor(storage, offset, shape, stride, *_unused) -> np.ndarray:
    """Returns the view of a storage that a tensor is."""
    if not isinstance(storage, np.ndarray) or len(shape) != len(stride):
        raise ValueError("a tensor without a storage, or with a wrong stride")
    numbers = (offset, *shape, *stride)
    if not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError(f"a tensor with offset {offset}, shape {shape} and stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if math.prod(shape) == 0:
        return np.empty(shape, storage.dtype)
    # A view that repeats memory could claim more than the file holds.
    if last >= storage.size or math.prod(shape) > storage.size:
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage")
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _parameter(data, *_unused) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise ValueError("a parameter that is no tensor")
    return data


_KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


def write(path: Path, values: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a file that `torch.load` reads, also with `weights_only=True`.

    Args:
        path: Where it will lie; torch names the archive's folder after the file.
        values: Arrays, integers, strings, and mappings of such.
    """
    pickled, storages = io.BytesIO(), []
    pickled.write(pickle.PROTO + b"\x02")
    _put(pickled, values, storages)
    pickled.write(pickle.STOP)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{path.stem}/data.pkl", pickled.getvalue())
        archive.writestr(f"{path.stem}/byteorder", "little")
        for key, storage in enumerate(storages):
            archive.writestr(f"{path.stem}/data/{key}", storage)
        archive.writestr(f"{path.stem}/version", "3\n")
    return data.getvalue()


def _put(out: io.BytesIO, value: Any, storages: list[bytes]) -> None:
    """Appends the opcodes that make a value."""
    if isinstance(value, Mapping):
        out.write(pickle.EMPTY_DICT + pickle.MARK)
        for name, item in value.items():
            _put(out, name, storages)
            _put(out, item, storages)
        out.write(pickle.SETITEMS)
    elif isinstance(value, str):
        text = value.encode()
        out.write(pickle.BINUNICODE + len(text).to_bytes(4, "little") + text)
    elif isinstance(value, tuple):
        out.write(pickle.MARK)
        for item in value:
            _put(out, item, storages)
        out.write(pickle.TUPLE)
    elif isinstance(value, int):
        out.write(pickle.LONG1 + b"\x08" + value.to_bytes(8, "little", signed=True))
    else:
        _put_tensor(out, np.asarray(value), storages)


def _put_tensor(out: io.BytesIO, value: np.ndarray, storages: list[bytes]) -> None:
    steps = tuple(math.prod(value.shape[i + 1 :]) for i in range(value.ndim))
    out.write(_name("torch._utils", "_rebuild_tensor_v2") + pickle.MARK + pickle.MARK)
    _put(out, "storage", storages)
    out.write(_name("torch", _STORAGES[value.dtype]))
    for part in (str(len(storages)), "cpu", value.size):
        _put(out, part, storages)
    out.write(pickle.TUPLE + pickle.BINPERSID)
    for part in (0, value.shape, steps):
        _put(out, part, storages)
    out.write(pickle.NEWFALSE + _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE)
    out.write(pickle.REDUCE + pickle.TUPLE + pickle.REDUCE)
    storages.append(np.ascontiguousarray(value).tobytes())


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
