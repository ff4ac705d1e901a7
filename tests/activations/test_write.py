import json
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import tensorstore as ts

from jaxdiff.activations import Moments, Recorded, Store, harvest, write_store
from jaxdiff.activations.files import Files
from jaxdiff.errors import JaxdiffError


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip(tmp_path, rows, split, config, equal, dtype):
    config = config.model_copy(update={"dtype": dtype})
    batch = rows(101)
    write_store(tmp_path, Recorded(split(batch, 7, 42, 77), site="s"), config=config)
    store = Store.open(tmp_path)
    got = store.read(0, 101)
    assert (store.rows, store.shape, store.site) == (101, (2, 6), "s")
    assert store.masked == (~batch.mask).sum() and store.documents == 15
    assert got.x.dtype == store.dtype == np.dtype(store.dtype)
    assert (got.x == batch.x.astype(store.dtype)).all()
    for name in ("tokens", "roles", "sequences", "positions", "labels", "mask"):
        assert (getattr(got, name) == getattr(batch, name)).all()
    want = Moments.of(batch.x, batch.mask).normalization()
    np.testing.assert_allclose(store.normalization.mean, want.mean, rtol=1e-6)
    np.testing.assert_allclose(store.normalization.scale, want.scale, rtol=1e-6)


def test_the_files_are_zarr_with_raw_chunks(tmp_path, rows, config):
    batch = rows(40)
    config = config.model_copy(update={"dtype": "bfloat16"})
    write_store(tmp_path, Recorded([batch], site="s"), config=config)
    for name in ("x", "tokens", "roles", "mask"):
        kvstore = {"driver": "file", "path": str(tmp_path / "shard-00000" / name)}
        array = ts.open({"driver": "zarr3", "kvstore": kvstore}).result()
        want = getattr(batch, name)
        assert array.shape == want.shape
        assert (array.read().result() == want.astype(array.dtype.numpy_dtype)).all()
    raw = (tmp_path / "shard-00000/x/c/1/0/0").read_bytes()
    assert raw == batch.x[16:32].astype(Store.open(tmp_path).dtype).tobytes()


def test_normalize_off_is_the_identity(tmp_path, rows, config):
    config = config.model_copy(update={"normalize": False})
    write_store(tmp_path, Recorded([rows(40)], site="s"), config=config)
    store = Store.open(tmp_path)
    assert not store.normalization.mean.any() and (store.normalization.scale == 1).all()
    assert store.moments.mean.any()


class _Killed(BaseException):
    """Not an Exception: nothing in between may handle it."""


def _kill_at(monkeypatch, n):
    write, count = Files.write, 0

    def dying(self, key, data):
        nonlocal count
        count += 1
        if count > n:
            raise _Killed
        future = write(self, key, data)
        future.result()
        return future

    monkeypatch.setattr(Files, "write", dying)


@pytest.mark.parametrize("outlier", [None, 1.5])
def test_a_harvest_killed_at_any_write_ends_the_same(
    tmp_path, pair, documents, site, config, tree, monkeypatch, outlier
):
    config = config.model_copy(update={"outlier": outlier})
    text = documents(14)

    def go(folder):
        write_store(folder, harvest(pair, text, site, config=config), config=config)

    go(tmp_path / "whole")
    want = tree(tmp_path / "whole")
    kills = 0
    for n in range(1, 100, 5):
        folder = tmp_path / str(n)
        with monkeypatch.context() as patch:
            _kill_at(patch, n)
            try:
                go(folder)
            except _Killed:
                kills += 1
        go(folder)
        assert tree(folder) == want, n
        if kills < n // 5 + 1:
            break
    assert kills > 6


def test_a_harvest_that_is_killed_again_and_again_gets_there(
    tmp_path, pair, documents, site, config, tree, monkeypatch
):
    text = documents(14)
    write_store(tmp_path / "whole", harvest(pair, text, site, config=config), config=config)
    for _ in range(40):
        with monkeypatch.context() as patch:
            _kill_at(patch, 23)  # enough for the chunks of one batch and their commit
            try:
                rows = harvest(pair, text, site, config=config)
                write_store(tmp_path / "again", rows, config=config)
                break
            except _Killed:
                pass
    assert tree(tmp_path / "again") == tree(tmp_path / "whole")


_CHILD = """
import sys, time, numpy as np
from jaxdiff.activations import Recorded, write_store
from jaxdiff.config import HarvestConfig
from jaxdiff.types import ActivationBatch

class Slow(Recorded):
    def __next__(self):
        time.sleep(float(sys.argv[2]))
        return super().__next__()

def batch(i):
    rng, n = np.random.default_rng(i), 5 + i % 7
    ints = [rng.integers(0, 5, n).astype(np.int32) for _ in range(5)]
    return ActivationBatch(rng.normal(size=(n, 2, 3)).astype(np.float32), *ints, ints[0] > 0)

config = HarvestConfig(dtype="float32", chunk=16)
write_store(sys.argv[1], Slow([batch(i) for i in range(40)], site="s"), config=config)
"""


def _child(folder, pause, **options):
    return subprocess.Popen([sys.executable, "-c", _CHILD, str(folder), str(pause)], **options)


def test_sigkill(tmp_path, tree):
    assert _child(tmp_path / "whole", 0).wait(timeout=120) == 0
    for _ in range(2):
        child = _child(tmp_path / "killed", 0.02)
        progress, seen = tmp_path / "killed/shard-00000/progress.json", 0
        while child.poll() is None and seen < 4:
            stamp = progress.stat().st_mtime_ns if progress.exists() else 0
            time.sleep(0.005)
            seen += progress.exists() and progress.stat().st_mtime_ns != stamp
        child.send_signal(signal.SIGKILL)
        assert child.wait(timeout=60) == -signal.SIGKILL
        assert progress.exists()
    assert _child(tmp_path / "killed", 0).wait(timeout=120) == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_a_complete_folder_is_left_alone(tmp_path, rows, config, tree):
    write_store(tmp_path, Recorded([rows(40)], site="s"), config=config)
    before = tree(tmp_path)
    write_store(tmp_path, Recorded([rows(99)], site="s"), config=config)
    assert tree(tmp_path) == before


def test_a_folder_with_another_harvest_is_refused(tmp_path, rows, config):
    write_store(tmp_path, Recorded([rows(40)], site="s"), config=config)
    with pytest.raises(JaxdiffError, match="another harvest: site is s, not t"):
        write_store(tmp_path, Recorded([rows(40)], site="t"), config=config)


def test_documents_are_reported_and_again_after_a_crash(
    tmp_path, pair, documents, site, config, monkeypatch
):
    text, done = documents(14), []

    def advance(n=1, note=""):
        done.append(n)

    with monkeypatch.context() as patch:
        _kill_at(patch, 40)
        with pytest.raises(_Killed):
            rows = harvest(pair, text, site, config=config)
            write_store(tmp_path, rows, config=config, advance=advance)
    del done[:]
    rows = harvest(pair, text, site, config=config)
    write_store(tmp_path, rows, config=config, advance=advance)
    assert sum(done) == 14 and done[0] > 0


def test_no_rows(tmp_path, rows, config):
    with pytest.raises(JaxdiffError, match="no activations to store"):
        write_store(tmp_path, Recorded([rows(0)], site="s"), config=config)


def test_a_full_disk_keeps_what_was_complete(
    tmp_path, pair, documents, site, config, tree, monkeypatch
):
    text = documents(14)
    write_store(tmp_path / "whole", harvest(pair, text, site, config=config), config=config)
    write = Files.write

    class Full:
        def result(self):
            raise OSError(28, "No space left on device")

    def full(self, key, data):
        return Full() if key.endswith("x/c/3/0/0") else write(self, key, data)

    folder = tmp_path / "full"
    with monkeypatch.context() as patch:
        patch.setattr(Files, "write", full)
        with pytest.raises(JaxdiffError) as caught:
            write_store(folder, harvest(pair, text, site, config=config), config=config)
    assert "No space left on device" in str(caught.value) and "GiB free" in str(caught.value)
    assert "x/c/3/0/0" in caught.value.where
    progress = json.loads((folder / "shard-00000/progress.json").read_text())
    assert 16 <= progress["rows"] <= 48
    write_store(folder, harvest(pair, text, site, config=config), config=config)
    assert tree(folder) == tree(tmp_path / "whole")


def test_a_write_that_the_system_refuses(tmp_path):
    limit = textwrap.dedent(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        """
    )
    code = limit + _CHILD
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s"), "0"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "JaxdiffError: writing failed: " in done.stderr and "File too large" in done.stderr


def test_a_bucket(rows, split, config, equal, tmp_path):
    url = "memory://bucket/store"
    batch = rows(70)
    write_store(url, Recorded(split(batch, 20, 50), site="s"), config=config)
    store = Store.open(url)
    assert equal(store.read(0, 70), batch)
    assert (store.read(14, 35).x == batch.x[14:35]).all()
    Files(url).delete("shard-00000/tokens/c/2")
    with pytest.raises(JaxdiffError, match="it is missing"):
        Store.open(url)
    Files(url).write("shard-00000/tokens/c/2", b"123").result()
    with pytest.raises(JaxdiffError, match="reading failed|bytes"):
        Store.open(url).column("tokens")
