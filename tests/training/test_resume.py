"""Going on: from any step, after SIGKILL or SIGTERM, on another mesh, not with other settings."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxdiff import checkpoint
from jaxdiff.activations import Recorded, Store, StoreSource, write_store
from jaxdiff.activations._ring import Feed, Ring
from jaxdiff.config import DictionaryConfig, HarvestConfig
from jaxdiff.dictionaries import load
from jaxdiff.errors import JaxdiffError, Preempted
from jaxdiff.mesh import make_mesh
from jaxdiff.training import first_step, read_snapshot, train
from jaxdiff.training.settings import record

SCRIPT = Path(__file__).with_name("run_until_killed.py")
KINDS = ("dense", "sparse")


def run(script, memory, folder, kind, mesh=None, source=None, **changes):
    source = source or memory.gaussian_source()
    settings = script.TRAIN.model_copy(update={"step": kind} | changes)
    return train(script.CONFIG, settings, source, source.in_order, folder=folder, seed=3, mesh=mesh)


@pytest.fixture(scope="module")
def finished(script, memory, tmp_path_factory):
    """Folders of uninterrupted runs that kept the checkpoint of every step."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        run(script, memory, folder, kind, keep_every=1)
    return folders


@pytest.mark.parametrize(
    ("kind", "moments"),
    [
        ("dense", ("save-begun", "batch17", "remove", "never")),
        ("sparse", ("save-done", "save-begun", "never")),
    ],
)
def test_killed_anywhere_ends_with_the_same_bits(finished, bits, tmp_path, kind, moments):
    """Killed during a save, after it, in a step, in a removal, then run to the end."""
    for moment in moments:
        done = subprocess.run(
            [sys.executable, SCRIPT, tmp_path, kind, moment], capture_output=True, text=True
        )
        assert done.returncode == (0 if moment == "never" else -9), done.stderr
        assert (tmp_path / "dictionary.json").exists() == (moment == "never")
    found, expected = bits(tmp_path), bits(finished[kind])
    assert found[:2] == expected[:2]
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(("kind", "step"), [("dense", 1), ("dense", 29), ("sparse", 8)])
def test_every_step_can_be_gone_on_from(finished, script, memory, bits, tmp_path, kind, step):
    name = f"checkpoints/{step:09d}"
    shutil.copytree(finished[kind] / name, tmp_path / name)
    shutil.copy(finished[kind] / "history.jsonl", tmp_path)
    run(script, memory, tmp_path, kind, keep_every=1)
    assert bits(tmp_path) == bits(finished[kind])
    first, last = (sorted(f.glob("checkpoints/*")) for f in (finished[kind], tmp_path))
    assert len(first) == 30 and [p.name for p in last] == [p.name for p in first[step - 1 :]]


def test_a_matched_l1_goes_on_in_the_sparse_step(script, memory, bits, tmp_path):
    config = DictionaryConfig(latents=64, k=3, activation="relu", match_l0=True, l1=0.05)
    changes = {"step": "sparse", "steps": 12, "keep_every": 1, "lr": 1e-3}
    settings, source = script.TRAIN.model_copy(update=changes), memory.gaussian_source()
    whole, later = tmp_path / "whole", tmp_path / "later"
    for folder in (whole, later):
        train(config, settings, source, source.in_order, folder=folder, seed=3)
        if folder == whole:
            shutil.copytree(whole / "checkpoints/000000005", later / "checkpoints/000000005")
            shutil.copy(whole / "history.jsonl", later)
    assert bits(later) == bits(whole)
    lines = [json.loads(line) for line in (whole / "history.jsonl").read_text().splitlines()]
    assert len({line["l1"] for line in lines}) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_kept_checkpoints_are_dictionaries_on_the_way(finished, kind):
    last = read_snapshot(finished[kind], 30, mesh=make_mesh(1, 2))
    exact = load(finished[kind])
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        np.testing.assert_array_equal(getattr(last, name), getattr(exact, name))
    early = read_snapshot(finished[kind], 3)
    assert early.activation == exact.activation and (early.W_dec != exact.W_dec).any()
    with pytest.raises(JaxdiffError, match="no checkpoint of step 31: 1, 2, 3, .* 30 kept"):
        read_snapshot(finished[kind], 31)


class Interrupted:
    """A source whose process is asked to end when a batch is read."""

    def __init__(self, source, at):
        self.source, self.at = source, at
        self.shape, self.normalization = source.shape, source.normalization
        self.in_order = source.in_order
        self.read = []

    def batches(self, batch, *, seed, epochs=None):
        return self.Batches(self, self.source.batches(batch, seed=seed, epochs=epochs))

    class Batches:
        def __init__(self, owner, batches):
            self.owner, self.batches = owner, batches
            self.get_state, self.set_state = batches.get_state, batches.set_state

        def __iter__(self):
            return self

        def __next__(self):
            found = next(self.batches)
            self.owner.read.append(found.tokens.tolist())
            if len(self.owner.read) == self.owner.at:
                os.kill(os.getpid(), signal.SIGTERM)
            return found


def test_sigterm_finishes_the_step_and_saves_it(finished, script, memory, bits, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    source = Interrupted(memory.gaussian_source(), at=18)
    # The batch is read ahead: step 17 is under way.
    with pytest.raises(Preempted, match="after step 17, which is saved; run again to go on"):
        run(script, memory, tmp_path, "dense", source=source)
    assert signal.getsignal(signal.SIGTERM) is before
    assert [int(p.name) for p in sorted(tmp_path.glob("checkpoints/*"))] == [14, 17]
    run(script, memory, tmp_path, "dense")
    assert bits(tmp_path)[:2] == bits(finished["dense"])[:2]


@pytest.fixture(scope="module")
def stored(memory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    rows = memory.batch_of(memory.gaussian_source().x)
    rows.tokens[:] = np.arange(len(rows.tokens))
    write_store(folder, Recorded([rows], site="s"), config=HarvestConfig(dtype="float32", chunk=32))
    return StoreSource(Store.open(folder), window=3)


@pytest.mark.parametrize("kind", KINDS)
def test_other_meshes_go_on_with_the_same_batches(script, memory, stored, tmp_path, kind):
    whole, part = Interrupted(stored, at=None), Interrupted(stored, at=10)
    expected = run(script, memory, tmp_path / "whole", kind, source=whole)
    with pytest.raises(Preempted):
        run(script, memory, tmp_path / "part", kind, source=part)
    for shape in ((1, 4), (2, 2)) if kind == "dense" else ((2, 2),):
        folder, rest = tmp_path / f"{shape}", Interrupted(stored, at=None)
        shutil.copytree(tmp_path / "part", folder)
        found = run(script, memory, folder, kind, make_mesh(*shape), source=rest)
        assert part.read[:9] + rest.read == whole.read
        for ours, theirs in zip(found.history, expected.history, strict=True):
            np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)
            assert ours["l0"] == theirs["l0"]


def test_the_step_is_chosen_once(script, memory, tmp_path, monkeypatch):
    """It is kept from the start on, and then by checkpoints; other settings measure anew."""

    class Ends(Interrupted):
        class Batches(Interrupted.Batches):
            def __next__(self):
                raise RuntimeError("the power went off")

    monkeypatch.setattr(first_step, "faster_step", lambda *_: "sparse")
    with pytest.raises(RuntimeError, match="power"):
        run(script, memory, tmp_path, "auto", source=Ends(memory.gaussian_source(), at=None))
    assert not checkpoint.steps(tmp_path / "checkpoints")
    monkeypatch.setattr(first_step, "faster_step", lambda *_: "dense")
    with pytest.raises(Preempted):
        source = Interrupted(memory.gaussian_source(), at=10)
        run(script, memory, tmp_path, "auto", source=source, log_every=1)
    (tmp_path / "checkpoints" / first_step.NAME).unlink()
    found = run(script, memory, tmp_path, "auto")
    assert all(line["passes"] > 0 for line in found.history)  # 0 in the dense step.

    path = tmp_path / "checkpoints" / first_step.NAME
    path.parent.mkdir()

    def chosen(**changes):
        theirs = record(script.CONFIG, script.TRAIN.model_copy(update=changes), 3)
        path.write_text(json.dumps({"settings": theirs, "step": "sparse"}))
        own = record(script.CONFIG, script.TRAIN, 3)
        how = {"folder": tmp_path, "own": own}
        return first_step.first_step(script.CONFIG, script.TRAIN, (2, 6), make_mesh(1, 1), **how)

    assert (chosen(log_every=5), chosen(lr=0.5)) == ("sparse", "dense")


class Stream:
    """A stream of another number of processes, whose models must not run for nothing."""

    shape = (2, 6)
    normalization = object()  # Would not do, if it was read before the position.

    def batches(self, batch, *, seed, epochs=None):
        feed = Feed(lambda: SimpleNamespace(get_state=lambda: {"text": {}}), epochs)
        return Ring(feed, half=64, batch=batch, seed=(seed,), lockstep=False)

    def in_order(self):
        return iter(())


def test_a_checkpoint_of_other_settings_is_refused_by_field(script, memory, tmp_path):
    with pytest.raises(Preempted):
        run(script, memory, tmp_path, "dense", source=Interrupted(memory.gaussian_source(), at=10))
    source = memory.gaussian_source()
    kept = sorted(tmp_path.rglob("*"))

    def refused(said, config=script.CONFIG, seed=3, **changes):
        settings = script.TRAIN.model_copy(update={"step": "dense"} | changes)
        with pytest.raises(JaxdiffError, match=said):
            train(config, settings, source, source.in_order, folder=tmp_path, seed=seed)
        assert sorted(tmp_path.rglob("*")) == kept

    larger = DictionaryConfig(**script.CONFIG.model_dump() | {"latents": 32})
    refused(r"another dictionary\.latents \(16, not 32\)\n", larger)
    refused(
        r"another train\.lr \(0\.01, not 0\.1\), train\.batch|batch.*, train\.lr", lr=0.1, batch=8
    )
    refused(r"another seed \(3, not 4\)", seed=4)
    with pytest.raises(JaxdiffError, match="go on with as many processes"):
        run(script, memory, tmp_path, "dense", source=Stream())
    # How often to save and what to keep may change.
    run(script, memory, tmp_path, "dense", checkpoint_every=4, keep_last=1, log_every=5)


def test_saves_by_time_and_by_step(script, memory, tmp_path, monkeypatch):
    saved, save = [], checkpoint.Writer.save

    def spy(self, step, *rest):
        saved.append(step)
        save(self, step, *rest)

    monkeypatch.setattr(checkpoint.Writer, "save", spy)
    run(script, memory, tmp_path / "a", "dense", checkpoint_every=100, log_every=10)
    assert saved == [30]
    saved.clear()
    often = {"checkpoint_every": 100, "checkpoint_minutes": 1e-6, "log_every": 10}
    run(script, memory, tmp_path / "b", "dense", **often)
    assert saved == [10, 20, 30]
    saved.clear()
    run(script, memory, tmp_path / "c", "dense", checkpoint_every=20, keep_every=12)
    assert saved == [12, 20, 24, 30]
    assert [int(p.name) for p in sorted(tmp_path.glob("c/checkpoints/*"))] == [12, 24]


def test_the_command_line_says_so_and_exits_as_after_sigterm(monkeypatch, capfd):
    from jaxdiff import cli, pipeline

    said = "preempted after step 9, which is saved; run again to go on"

    def stop(settings):
        raise Preempted(said)

    monkeypatch.setattr(pipeline, "train", stop)
    assert cli.main(["train", "quickstart"]) == 128 + signal.SIGTERM
    assert capfd.readouterr().err == f"jaxdiff: {said}\n"
