import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jaxdiff import manifest
from jaxdiff.errors import JaxdiffError


def _stage(folder: Path, value: str, *, config: dict | None = None) -> bool:
    """Writes a value; returns whether there was anything to do."""
    with manifest.stage(folder, "test", config=config or {}, inputs={"a": "1"}, seed=0) as work:
        if work is None:
            return False
        (work / "sub").mkdir(exist_ok=True)
        (work / "sub" / "value").write_text(value)
    return True


def test_the_same_inputs_are_computed_once(tmp_path):
    assert _stage(tmp_path / "s", "one")
    assert not _stage(tmp_path / "s", "two")
    assert (tmp_path / "s/sub/value").read_text() == "one"
    found = manifest.read(tmp_path / "s")
    assert (found.stage, found.inputs, found.outputs) == ("test", {"a": "1"}, {"sub/value": 3})


def test_other_inputs_replace_the_result_at_the_end_only(tmp_path):
    _stage(tmp_path / "s", "one")
    with pytest.raises(RuntimeError):
        with manifest.stage(tmp_path / "s", "test", config={"x": 1}, inputs={}, seed=0) as work:
            assert work is not None
            assert (tmp_path / "s/sub/value").read_text() == "one"
            raise RuntimeError
    assert (tmp_path / "s/sub/value").read_text() == "one"
    assert _stage(tmp_path / "s", "two", config={"x": 1})
    assert (tmp_path / "s/sub/value").read_text() == "two"


@pytest.mark.parametrize("name", ["stage", "config", "inputs", "seed"])
def test_everything_that_decides_the_result_is_in_the_fingerprint(name: str):
    given = {"stage": "a", "config": {"x": 1}, "inputs": {"y": "2"}, "seed": 0}
    other = given | {"stage": "b", "config": {"x": 2}, "inputs": {"y": "3"}, "seed": 1}

    def mark(d):
        return manifest.fingerprint(d["stage"], **{k: d[k] for k in ("config", "inputs", "seed")})

    assert mark(given) == mark(dict(given))
    assert mark(given) != mark(given | {name: other[name]})


def test_a_killed_stage_finds_its_work_again(tmp_path):
    code = f"""
        import os, signal
        from pathlib import Path
        from jaxdiff import manifest
        folder = Path({str(tmp_path / "s")!r})
        with manifest.stage(folder, "t", config={{}}, inputs={{}}, seed=0) as w:
            with (w / "half").open("a") as file:
                file.write("x")
            if (w / "half").read_text() == "x":
                os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "s").exists()
    assert subprocess.run(command, check=False).returncode == 0
    assert (tmp_path / "s/half").read_text() == "xx"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_unfinished_work_for_other_inputs_stays_until_a_stage_is_complete(tmp_path):
    for x in (1, 2):
        with pytest.raises(RuntimeError):
            with manifest.stage(tmp_path / "s", "t", config={"x": x}, inputs={}, seed=0):
                raise RuntimeError
    assert len(list(tmp_path.iterdir())) == 2
    _stage(tmp_path / "s", "one")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_crash_at_any_rename_can_be_repaired(tmp_path, monkeypatch, nth: int):
    _stage(tmp_path / "s", "one")
    replace, calls = os.replace, 0

    def crash(*paths):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        _stage(tmp_path / "s", "two", config={"x": 1})
    monkeypatch.undo()
    assert _stage(tmp_path / "s", "two", config={"x": 1})
    assert not _stage(tmp_path / "s", "two", config={"x": 1})
    assert manifest.read(tmp_path / "s").outputs == {"sub/value": 3}


def test_a_result_of_other_inputs_is_refused(tmp_path):
    _stage(tmp_path / "s", "one")
    mark = manifest.read(tmp_path / "s").fingerprint
    assert manifest.expect(tmp_path / "s", mark).fingerprint == mark
    with pytest.raises(JaxdiffError, match="other settings"):
        manifest.expect(tmp_path / "s", "0" * 16)


def test_foreign_files_are_left_alone(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/letter.txt").write_text("dear")
    with pytest.raises(JaxdiffError, match="did not write"):
        _stage(tmp_path / "s", "one")


def test_damage_is_named(tmp_path):
    _stage(tmp_path / "s", "one")
    (tmp_path / "s/sub/value").write_text("longer")
    with pytest.raises(JaxdiffError, match=r"sub/value should have 3 bytes, it has 6"):
        manifest.read(tmp_path / "s")
    os.remove(tmp_path / "s/sub/value")
    with pytest.raises(JaxdiffError, match="it is missing"):
        manifest.read(tmp_path / "s")
    (tmp_path / "s" / manifest.FILE).write_text("{")
    with pytest.raises(JaxdiffError, match="cannot be read"):
        manifest.read(tmp_path / "s")
    with pytest.raises(JaxdiffError, match="no manifest"):
        manifest.read(tmp_path / "none")


def test_a_full_disk_is_said_and_the_old_result_kept(tmp_path):
    _stage(tmp_path / "s", "one")
    with pytest.raises(JaxdiffError, match="No space left"):
        with manifest.stage(tmp_path / "s", "test", config={"x": 1}, inputs={}, seed=0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (tmp_path / "s/sub/value").read_text() == "one"


def test_write_atomically_leaves_old_or_new(tmp_path, monkeypatch):
    path = tmp_path / "file"
    manifest.write_atomically(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("crash")))
    with pytest.raises(OSError, match="crash"):
        manifest.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_the_manifest_is_plain_json(tmp_path):
    _stage(tmp_path / "s", "one", config={"path": Path("x")})
    assert json.loads((tmp_path / "s" / manifest.FILE).read_text())["config"] == {"path": "x"}


def test_stages_that_are_done_together_share_the_time(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(manifest.time, "monotonic", lambda: now[0])

    def stage(name: str):
        return manifest.stage(tmp_path / name, "test", config={}, inputs={}, seed=0, among=2)

    with stage("a"), stage("b"):
        now[0] += 6
    assert [manifest.read(tmp_path / name).seconds for name in "ab"] == [3, 3]
