"""The loop: history, results, and what it refuses."""

import json

import jax
import numpy as np
import pytest

from jaxdiff import checkpoint
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries import files, init, load
from jaxdiff.errors import JaxdiffError
from jaxdiff.training import EndedEarly, fit, train
from jaxdiff.training.history import rewind
from jaxdiff.training.loop import read_result

QUICK = DictionaryConfig(latents=8, activation="relu")


@pytest.fixture(scope="module")
def finished(script, memory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    source = memory.gaussian_source()
    result = train(script.CONFIG, script.TRAIN, source, source.in_order, folder=folder, seed=3)
    return folder, result


def test_what_the_folder_holds(finished, script):
    folder, result = finished
    assert sorted(p.name for p in folder.iterdir()) == [
        "dictionary.json",
        "dictionary.safetensors",
        "history.jsonl",
    ]
    jax.tree.map(np.testing.assert_array_equal, load(folder), result.dictionary)
    assert result.evaluation.l0 == pytest.approx(2.0, abs=1e-3)
    assert float(result.dictionary.threshold) > 0
    assert (result.steps, result.tokens, result.l1_weight) == (30, 960, None)
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert all(0 <= line.pop("waited") <= 1 for line in lines)
    assert lines == result.history and [line["step"] for line in lines] == list(range(2, 31, 2))
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_a_finished_run_is_read_not_repeated(finished, script, memory):
    folder, result = finished

    class Unread(memory.MemorySource):
        def batches(self, batch, *, seed, epochs=None):
            raise AssertionError("trained again")

    source = Unread(memory.gaussian_source().x)
    again = train(script.CONFIG, script.TRAIN, source, source.in_order, folder=folder, seed=3)
    jax.tree.map(np.testing.assert_array_equal, again.dictionary, result.dictionary)
    np.testing.assert_array_equal(again.normalization.mean, result.normalization.mean)
    np.testing.assert_array_equal(again.normalization.scale, result.normalization.scale)
    assert (again.evaluation, again.history) == (result.evaluation, result.history)
    assert read_result(folder).evaluation == result.evaluation


def test_other_settings_in_the_same_folder_are_refused(finished, script, memory):
    source = memory.gaussian_source()
    other = script.TRAIN.model_copy(update={"lr": 1e-3})
    with pytest.raises(JaxdiffError, match="another train.lr"):
        train(script.CONFIG, other, source, source.in_order, folder=finished[0], seed=3)
    with pytest.raises(JaxdiffError, match="another seed"):
        train(script.CONFIG, script.TRAIN, source, source.in_order, folder=finished[0], seed=4)


def test_a_loss_that_is_not_finite_stops_training(memory, tmp_path):
    source = memory.gaussian_source()
    source.x[:] *= 1e25  # Its square is not a float32.
    config = TrainConfig(steps=4, batch=32, log_every=1, checkpoint_every=2)
    with pytest.raises(JaxdiffError, match="loss is not finite at step 1"):
        train(QUICK, config, source, source.in_order, folder=tmp_path, seed=0)
    assert not checkpoint.steps(tmp_path / "checkpoints")


def test_a_source_that_ends_early_is_named_and_what_was_done_is_kept(
    finished, script, memory, bits, tmp_path
):
    class Short(memory.MemorySource):
        def batches(self, batch, *, seed, epochs=None):
            return Three(self.x, batch, seed)

    class Three(memory.Batches):
        def __next__(self):
            if self.at == 3:
                raise StopIteration
            return super().__next__()

    whole = memory.gaussian_source()
    source = Short(whole.x, whole.normalization)
    with pytest.raises(JaxdiffError, match="ended after 3 of 30 steps of 32 tokens; .* is saved"):
        train(script.CONFIG, script.TRAIN, source, source.in_order, folder=tmp_path, seed=3)
    assert checkpoint.steps(tmp_path / "checkpoints") == [3]
    train(script.CONFIG, script.TRAIN, whole, whole.in_order, folder=tmp_path, seed=3)
    assert bits(tmp_path)[:2] == bits(finished[0])[:2]


def test_fit_is_the_same_training_without_a_folder(memory, tmp_path):
    source = memory.gaussian_source()
    settings = TrainConfig(steps=6, batch=32, log_every=2)
    result = train(QUICK, settings, source, source.in_order, folder=tmp_path, seed=5)
    raw = (batch.x for batch in source.batches(32, seed=5))
    d, lines = fit(QUICK, settings, map(source.normalization.apply, raw), seed=5)
    np.testing.assert_allclose(d.W_dec, result.dictionary.W_dec, rtol=1e-5)
    assert [line["step"] for line in lines] == [2, 4, 6]
    batches = [source.x[i : i + 32] for i in range(0, 128, 32)]
    with pytest.raises(EndedEarly, match="ended after 4 of 6 steps") as early:
        fit(QUICK, settings, iter(batches), seed=5)
    d, lines = fit(QUICK, TrainConfig(steps=4, batch=32, log_every=2), batches, seed=5)
    jax.tree.map(np.testing.assert_array_equal, early.value.dictionary, d)
    assert early.value.history == lines
    with pytest.raises(
        JaxdiffError, match=r"batch 2 is \[5, 2, 6\], the first one is \[32, 2, 6\]"
    ):
        fit(QUICK, settings, [batches[0], batches[1][:5]], seed=5)
    with pytest.raises(JaxdiffError, match="no batch"):
        fit(QUICK, settings, [], seed=5)
    with pytest.raises(JaxdiffError, match="k = 0.01 of a batch of 32 tokens is no latent"):
        fit(DictionaryConfig(latents=8, k=0.01), settings, batches, seed=5)
    with pytest.raises(JaxdiffError, match="16 rows, train.batch is 32"):
        fit(QUICK, settings, [np.zeros((16, 2, 3), np.float32)], seed=5)


def test_history_is_cut_back_to_the_checkpoint(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert rewind(tmp_path, 2) == [{"step": 1}, {"step": 2}]
    assert (tmp_path / "history.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_dictionary_from_elsewhere_is_no_result(tmp_path):
    files.save(init(QUICK, (2, 3), key=jax.random.key(0)), tmp_path, imported="elsewhere")
    with pytest.raises(JaxdiffError, match="dictionaries.load"):
        read_result(tmp_path)
