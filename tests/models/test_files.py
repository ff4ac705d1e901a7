import shutil
import subprocess
import sys

import pytest

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import fingerprint, load


def _touch(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_fingerprint_is_of_contents(golden, tmp_path):
    source = golden / "gemma2_window_caps"
    copy = shutil.copytree(source, tmp_path / "copy")
    first = fingerprint(source)
    assert len(first) == 16 and fingerprint(str(copy)) == first
    (copy / "README.md").write_text("other files do not count")
    assert fingerprint(copy) == first
    _touch(copy / "model-00003-of-00003.safetensors", -1)
    second = fingerprint(copy)
    _touch(copy / "config.json", 3)
    assert len({first, second, fingerprint(copy)}) == 3


def test_fingerprint_of_a_hub_snapshot_is_its_commit(golden, tmp_path):
    def snapshot(commit):
        return shutil.copytree(golden / "llama_mha_tied_biases", tmp_path / "snapshots" / commit)

    first, second = snapshot("a" * 40), snapshot("b" * 40)
    assert fingerprint(first) != fingerprint(second)
    before = fingerprint(first)
    _touch(first / "model.safetensors", -1)
    assert fingerprint(first) == before


@pytest.mark.parametrize("name", ["/no/such/directory", "./x/y/z", "a b"])
def test_what_is_no_directory_and_no_hub_name(name):
    with pytest.raises(JaxdiffError, match="neither a directory nor a hub name"):
        load(name)


def test_the_hub_out_of_reach_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(JaxdiffError, match="hub gives no such model") as error:
        load("nobody/nothing", revision="main")
    assert error.value.where == "nobody/nothing"


def test_a_directory_without_config(tmp_path):
    with pytest.raises(JaxdiffError, match="no config.json"):
        load(tmp_path)


def test_importing_and_loading_says_nothing(golden):
    """No notice that torch is absent, and no flax before it is needed."""
    code = (
        "import sys, jaxdiff.models as m; assert 'flax' not in sys.modules; assert 'LM' in dir(m); "
        f"m.load({str(golden / 'llama_mha_tied_biases')!r}); assert 'flax' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
