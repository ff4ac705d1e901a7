"""The whole pipeline on a cut-down quickstart."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxdiff import cli, config, pipeline, report
from jaxdiff.config import RunConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.training import read_result


def small(out: Path, **more) -> RunConfig:
    """Returns the quickstart preset with little text, few latents and few steps."""
    preset = config.load("quickstart").model_dump()
    preset["text"] |= {"train_sequences": 150, "validation_sequences": 40, "test_sequences": 60}
    preset["harvest"] |= {"batch": 16, "chunk": 512}
    for own in preset["dictionaries"].values():
        own |= {"latents": 64}
    preset["train"] |= {
        **{"steps": 30, "batch": 128, "warmup": 5},
        **{"checkpoint_every": 10, "log_every": 10},
    }
    preset["diff"] |= {"bootstrap": 20, "examples": 2, "batch": 512}
    preset["mesh"] = {"data": 1, "latent": 1}
    return config.parse(preset | {"out": out} | more)


def _start(settings: RunConfig, folder: Path) -> subprocess.Popen:
    """Starts a run in a process of its own, with the suite's devices but not its shape checks."""
    path = folder / "config.json"
    path.write_text(settings.model_dump_json())
    code = (
        "import jax; jax.config.update('jax_num_cpu_devices', 8)\n"
        "import sys; from jaxdiff import cli\n"
        f"sys.exit(cli.main(['run', {str(path)!r}]))"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunConfig:
    folder = tmp_path_factory.mktemp("run")
    settings = small(folder / "out")
    assert _start(settings, folder).wait() == 0
    return settings


@pytest.fixture
def out(finished: RunConfig, tmp_path) -> Path:
    """Returns a run's folder that has the corpora already: they take a while to write."""
    shutil.copytree(finished.out / "corpus", tmp_path / "out" / "corpus")
    return tmp_path / "out"


@pytest.mark.smoke
def test_a_run_ends_with_results_and_a_page(finished: RunConfig):
    results = json.loads((finished.out / "results.json").read_text())
    report.check(results)
    for pair in ("dictionaries", "null"):
        assert set(results[pair]) == {"batch_topk", "l1"}
        for one in results[pair].values():
            assert sum(one["counts"].values()) == one["latents"] == 64
            assert sum(one["latent_scaling"].values()) == one["alive"]
    assert {row["behaviour"] for row in results["dictionaries"]["l1"]["truth"]} == {
        b["name"] for b in results["behaviours"]
    }
    page = (finished.out / "report" / "index.html").read_text()
    assert "chat-tiny" in page


def test_the_null_pairs_results_are_its_own(finished: RunConfig):
    results = json.loads((finished.out / "results.json").read_text())
    fves = [results[pair]["batch_topk"]["fve"] for pair in ("dictionaries", "null")]
    assert fves[0] != fves[1]


def test_a_finished_run_does_nothing_but_say_so(finished: RunConfig, capfd):
    before = {p: p.stat().st_mtime_ns for p in finished.out.rglob("*") if p.is_file()}
    pipeline.run(finished)
    said = capfd.readouterr().err
    assert said.count("done already") == len(said.splitlines()) == 15
    assert before == {p: p.stat().st_mtime_ns for p in finished.out.rglob("*") if p.is_file()}


def test_only_what_depends_on_a_change_is_done_again(finished: RunConfig, tmp_path, capfd):
    shutil.copytree(finished.out, tmp_path / "out")
    settings = finished.model_copy(
        update={"out": tmp_path / "out", "diff": finished.diff.model_copy(update={"auroc": 0.8})}
    )
    pipeline.run(settings)
    said = capfd.readouterr().err.splitlines()
    redone = {line for line in said if "done already" not in line}
    assert any(line.startswith("main/diff/l1") for line in redone)
    assert not any("/harvest/" in line or "/train/" in line for line in redone)


def test_a_run_that_is_killed_ends_with_the_same_bits(finished: RunConfig, out, tmp_path):
    settings = small(out)
    # Killed once it has begun to write each of these.
    for sign in ("main/harvest/train*/**/*", "main/train/l1*/checkpoints/*", "null/diff/l1*/*"):
        process = _start(settings, tmp_path)
        while not list(settings.out.glob(sign)) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert _start(settings, tmp_path).wait() == 0
    for pair in ("main", "null"):
        for name in settings.dictionaries:
            folders = [out / pair / "train" / name for out in (settings.out, finished.out)]
            ours, theirs = (read_result(folder).dictionary for folder in folders)
            for field in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
                np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))


def test_stream_mode_stores_no_training_text(finished: RunConfig, out, tmp_path):
    preset = finished.model_dump()
    preset["harvest"] |= {"mode": "stream", "ring": 2048}
    one = {"batch_topk": preset["dictionaries"]["batch_topk"]}
    settings = config.parse(preset | {"out": out, "null_pair": None, "dictionaries": one})
    assert _start(settings, tmp_path).wait() == 0
    assert not (settings.out / "main/harvest/train").exists()
    results = json.loads((settings.out / "results.json").read_text())
    assert results["null"] is None
    assert results["dictionaries"]["batch_topk"]["fve"]["all"] > 0.2


def test_a_stage_says_which_stage_is_missing(out):
    settings = small(out)
    for stage, missing in ((pipeline.train, "harvest"), (pipeline.diff, "train")):
        with pytest.raises(JaxdiffError, match="no complete stage") as error:
            stage(settings)
        assert missing in error.value.where


def test_a_stage_refuses_what_was_made_from_other_settings(finished: RunConfig):
    other = finished.model_copy(update={"site": "blocks.1.resid_post"})
    for stage in (pipeline.train, pipeline.diff, pipeline.report):
        with pytest.raises(JaxdiffError, match="other settings"):
            stage(other)


def test_a_lost_results_file_is_written_again(finished: RunConfig):
    path = finished.out / "results.json"
    before = path.read_bytes()
    path.unlink()
    pipeline.report(finished)
    assert path.read_bytes() == before


def _main(*words: str) -> int:
    """Runs the command line in this process; returns the exit code."""
    try:
        return cli.main(list(words))
    except SystemExit as error:
        return int(error.code or 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "quikstart"), "did you mean quickstart"),
        (("run",), "needs a config"),
        (("quickstart", "--train.stepz", "3"), "--train.steps"),
        (("quickstart", "--train.steps", "many"), "train.steps"),
        (("organism", "chat-tinny"), "did you mean chat-tiny"),
        (("quickstart", "--site", "blocks.9.resid_post"), "blocks"),
        (("quickstart", "--models.base", "/nowhere/at/all"), "/nowhere/at/all"),
        (("quickstart", "--text.train-sequences", "10000000"), "10000000"),
        (("quickstart", "--text.sources.0.path", "/nowhere.jsonl"), "/nowhere.jsonl"),
        (("quickstart", "--mesh.latent", "99"), "99"),
    ],
)
def test_bad_words_end_with_code_2_and_one_message(words, said, out, capfd):
    where = ("--out", str(out)) if words[0] == "quickstart" else ()
    assert _main(*words, *where) == 2
    heard = capfd.readouterr().err
    assert said in heard
    assert "Traceback" not in heard


def _damaged(tmp_path: Path, model: str, change) -> Path:
    """Copies a shipped model and spoils it."""
    from jaxdiff import organisms

    folder = tmp_path / "model"
    shutil.copytree(organisms.path(f"chat-tiny/{model}"), folder)
    change(folder)
    return folder


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _lose_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _poison(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][20:] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _other_vocabulary(folder: Path) -> None:
    import jax

    from jaxdiff import models

    spec = dataclasses.replace(models.load(folder).spec, vocab_size=600)
    models.save(models.init(spec, key=jax.random.key(0)), folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_truncate, "model.safetensors"),
        (_lose_shard, "model-00002-of-00002.safetensors"),
        (_poison, "finite"),
        (_other_vocabulary, "600"),
    ],
)
def test_bad_models_end_with_code_2_and_one_message(change, said, out, tmp_path, capfd):
    model = _damaged(tmp_path, "chat", change)
    words = ("quickstart", "--models.ft", str(model), "--out", str(out))
    assert _main(*words, "--mesh.latent", "1") == 2
    heard = capfd.readouterr().err
    assert said in heard
    assert "Traceback" not in heard


def test_equal_sizes_do_not_make_equal_vocabularies(out, tmp_path, capfd):
    def swap(folder: Path) -> None:
        path = folder / "tokenizer.json"
        state = json.loads(path.read_text())
        ids = state["model"]["vocab"]
        ids["soup"], ids["bread"] = ids["bread"], ids["soup"]
        path.write_text(json.dumps(state))

    model = _damaged(tmp_path, "base", swap)
    assert _main("quickstart", "--models.base", str(model), "--out", str(out)) == 2
    assert "2 tokens have other ids" in capfd.readouterr().err


def test_an_empty_corpus_ends_with_code_2(out, tmp_path, capfd):
    (tmp_path / "none.jsonl").write_text("")
    words = ("--text.sources.1.path", str(tmp_path / "none.jsonl"), "--out", str(out))
    assert _main("quickstart", *words) == 2
    assert "none.jsonl" in capfd.readouterr().err


def test_a_damaged_store_ends_with_code_2_and_keeps_the_rest(finished, tmp_path, capfd):
    shutil.copytree(finished.out, tmp_path / "out")
    settings = finished.model_copy(update={"out": tmp_path / "out"})
    store = tmp_path / "out/main/harvest/train"
    chunk = max((p for p in store.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-100])
    path = tmp_path / "config.json"
    path.write_text(settings.model_dump_json())
    assert _main("run", str(path)) == 2
    heard = capfd.readouterr().err
    assert "does not match its manifest" in heard and chunk.name in heard
    assert (tmp_path / "out/main/diff/l1/manifest.json").exists()


def test_the_null_pair_can_be_left_out_or_given(out, capfd):
    words = ("quickstart", "--out", str(out), "--no-null-pair", "--text.test-sequences", "99999")
    assert _main(*words) == 2  # Not for the null pair: there is too little text.
    assert "99999" in capfd.readouterr().err
    words = ("gemma2_2b_chat", "--null-pair.ft", "/nowhere", "--help")
    assert _main("run", *words) == 0
    assert "--null-pair.ft" in capfd.readouterr().out


def test_help_explains_every_field_with_its_unit(capfd):
    assert _main("run", "gemma2_2b_chat", "--help") == 0
    said = capfd.readouterr().out
    for field in ("--train.steps", "--site", "--models.base", "--dictionaries.batch-topk.k"):
        assert field in said
    assert "[steps]" in said and "73728" in said
