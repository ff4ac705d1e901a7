"""Torch's archives: tensors of every kind are read, and nothing that a file asks for is run."""

import pickle
import zipfile

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from jaxdiff.dictionaries.formats import _torch_zip
from jaxdiff.errors import JaxdiffError


@pytest.fixture
def forged(tmp_path):
    """Writes an archive with a pickle of one's own."""

    def write(pickled, **entries):
        path = tmp_path / "forged.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("forged/data.pkl", pickled)
            for name, data in entries.items():
                archive.writestr(f"forged/{name.replace('__', '/')}", data)
        return path

    return write


def test_tensors_of_every_kind(golden):
    found = _torch_zip.read(golden / "odd.pt")
    assert found.pop("name") == "TopK" and found.pop("k") == 5
    found |= {f"nested.{name}": value for name, value in found.pop("nested").items()}
    with safe_open(golden / "odd.safetensors", framework="numpy") as file:
        expected = {name: file.get_tensor(name) for name in file.keys()}
    assert found.keys() == expected.keys() and len(found) == 18
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    # Views of one storage share its memory, as torch's do.
    assert np.shares_memory(found["base"], found["transposed"])


VALUES = {
    "W": np.arange(6, dtype=np.float32).reshape(2, 3),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "low": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
    "k": np.asarray(7, np.int32),
    "flag": np.asarray(True),
    "empty": np.zeros((0, 2), np.float32),
    "count": -3,
    "inner": {"name": "ReLU é"},
}


def _same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not isinstance(value, np.ndarray):
            assert found[name] == value
            continue
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        np.testing.assert_array_equal(found[name], value)


def test_written_and_read(tmp_path):
    path = tmp_path / "own.pt"
    path.write_bytes(_torch_zip.write(path, VALUES))
    _same(_torch_zip.read(path), VALUES)


@pytest.mark.parity
@pytest.mark.parametrize("weights_only", [True, False])
def test_torch_reads_what_is_written(tmp_path, weights_only):
    torch = pytest.importorskip("torch")
    path = tmp_path / "own.pt"
    path.write_bytes(_torch_zip.write(path, VALUES))
    found = torch.load(path, weights_only=weights_only)
    assert found["low"].dtype == torch.bfloat16 and found["flag"].dtype == torch.bool
    found["low"] = found["low"].float().numpy().astype(ml_dtypes.bfloat16)
    _same({n: v.numpy() if torch.is_tensor(v) else v for n, v in found.items()}, VALUES)


@pytest.mark.parity
def test_what_torch_writes_now(tmp_path):
    torch = pytest.importorskip("torch")
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    torch.save(state, tmp_path / "state.pt")
    found = _torch_zip.read(tmp_path / "state.pt")
    _same(found, {name: value.numpy() for name, value in state.items()})


class _Runs:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("function", [exec, open, getattr, __import__])
def test_no_function_is_called(forged, tmp_path, function, protocol):
    mark = tmp_path / "was here"
    calls = {exec: (f"open({str(mark)!r}, 'w')",), open: (str(mark), "w"), getattr: ("", "join")}
    path = forged(pickle.dumps(_Runs(function, *calls.get(function, ("os",))), protocol))
    with pytest.raises(
        JaxdiffError, match=f"asks for (builtins|__builtin__|io|_io).{function.__name__}"
    ):
        _torch_zip.read(path)
    assert not mark.exists()


def test_names_below_known_ones_are_not_reached(forged):
    # Protocol 4 allows dotted names: the module of a known function would lead to os.
    pickled = b"\x80\x04\x8c\x0ctorch._utils\x8c\x1f_rebuild_tensor_v2.__globals__\x93."
    pickled = pickled.replace(b"\x8c\x1f", b"\x8c" + bytes([len("_rebuild_tensor_v2.__globals__")]))
    with pytest.raises(JaxdiffError, match="asks for torch._utils._rebuild_tensor_v2.__globals__"):
        _torch_zip.read(forged(pickled))


def _tensor(size, offset, shape, stride):
    """A pickle of {'W': tensor}, with numbers of one's own."""
    call = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    call += b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + _numbers(size) + b"tQ" + _numbers(offset)
    call += b"(" + b"".join(map(_numbers, shape)) + b"t(" + b"".join(map(_numbers, stride)) + b"t"
    return b"\x80\x02}(X\x01\x00\x00\x00W" + call + b"\x89}tRu."


def _numbers(n):
    return b"J" + n.to_bytes(4, "little", signed=True)


FOUR = np.arange(4, dtype=np.float32).tobytes()


def test_a_tensor_by_hand(forged):
    path = forged(_tensor(4, 1, (2,), (2,)), data__0=FOUR)
    np.testing.assert_array_equal(_torch_zip.read(path)["W"], [1.0, 3.0])


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((4, 0, (5,), (1,)), "beyond its storage"),
        ((4, 3, (2,), (1,)), "beyond its storage"),
        ((4, 0, (2,), (4,)), "beyond its storage"),
        ((4, 0, (1 << 30,), (0,)), "beyond its storage"),
        ((4, 0, (2,), (-1,)), "offset 0"),
        ((4, -1, (2,), (1,)), "offset -1"),
        ((4, 0, (2, 2), (1,)), "wrong stride"),
        ((5, 0, (4,), (1,)), "has 4 numbers instead of 5"),
    ],
)
def test_tensors_outside_of_their_storage(forged, numbers, message):
    with pytest.raises(JaxdiffError, match=message):
        _torch_zip.read(forged(_tensor(*numbers), data__0=FOUR))


def test_other_damage(forged, tmp_path, golden):
    good = (golden / "odd.pt").read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(JaxdiffError, match="no zip archive of torch"):
        _torch_zip.read(path)
    path.write_bytes(pickle.dumps({"W": 1}))
    with pytest.raises(JaxdiffError, match="before 1.6"):
        _torch_zip.read(path)
    # A flipped byte of a tensor, which the archive's checksum finds.
    at = good.find(np.arange(24, dtype=np.float32).tobytes())
    path.write_bytes(good[: at + 5] + b"\xff" + good[at + 6 :])
    with pytest.raises(JaxdiffError, match="CRC"):
        _torch_zip.read(path)
    with pytest.raises(JaxdiffError, match="cannot be read"):
        _torch_zip.read(forged(_tensor(4, 0, (4,), (1,))))
    with pytest.raises(JaxdiffError, match="a list, not named tensors"):
        _torch_zip.read(forged(pickle.dumps([1, 2], 2)))
    with pytest.raises(JaxdiffError, match="big-endian"):
        _torch_zip.read(forged(_tensor(4, 0, (4,), (1,)), data__0=FOUR, byteorder="big"))
