"""Several dictionaries in one pass: each as if it were alone, whatever happened on the way."""

import shutil

import numpy as np
import pytest

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.training import train, train_together

TRAIN = TrainConfig(
    steps=20, batch=32, lr=1e-2, warmup=3, step="dense", checkpoint_every=5, log_every=4
)
CONFIGS = {
    "k2": DictionaryConfig(latents=16, k=2, dead_after=100),
    "wide": DictionaryConfig(latents=24, k=3, seed=7),
    "again": DictionaryConfig(latents=16, k=2, dead_after=100, seed=1),
}


class Counted:
    """A source that counts the batches that are read."""

    def __init__(self, source, end=None):
        self.source, self.end, self.read = source, end, 0
        self.shape, self.normalization = source.shape, source.normalization
        self.in_order = source.in_order

    def batches(self, batch, *, seed, epochs=None):
        found = self.source.batches(batch, seed=seed)

        class Batches(type(found)):
            def __next__(inner):
                self.read += 1
                if self.read == self.end:
                    raise RuntimeError("the power went off")
                return super().__next__()

        found.__class__ = Batches
        return found


@pytest.fixture(scope="module")
def alone(memory, tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("alone"), memory.gaussian_source()
    for name, config in CONFIGS.items():
        train(config, TRAIN, source, source.in_order, folder=folder / name, seed=3)
    return folder


def together(source, folder, names=tuple(CONFIGS)):
    configs = {folder / name: CONFIGS[name] for name in names}
    return train_together(configs, TRAIN, source, source.in_order, seed=3)


def test_each_becomes_what_it_is_alone_and_a_batch_is_read_once(memory, alone, bits, tmp_path):
    source = Counted(memory.gaussian_source())
    results = together(source, tmp_path)
    assert source.read == TRAIN.steps
    assert list(results) == [tmp_path / name for name in CONFIGS]
    for name in CONFIGS:
        assert bits(tmp_path / name) == bits(alone / name)
    first, again = (results[tmp_path / name].dictionary.W_dec for name in ("k2", "again"))
    assert (np.asarray(first) != np.asarray(again)).any()


def test_courses_that_stopped_at_different_steps_end_together(memory, alone, bits, tmp_path):
    with pytest.raises(RuntimeError, match="power"):
        together(Counted(memory.gaussian_source(), end=18), tmp_path)
    shutil.rmtree(tmp_path / "wide/checkpoints/000000015")
    shutil.rmtree(tmp_path / "again/checkpoints")
    shutil.rmtree(tmp_path / "k2")
    shutil.copytree(alone / "k2", tmp_path / "k2")
    source = Counted(memory.gaussian_source())
    together(source, tmp_path)
    assert source.read == TRAIN.steps  # One starts over; the others wait for it.
    for name in CONFIGS:
        assert bits(tmp_path / name) == bits(alone / name)


def test_one_that_does_not_fit_is_refused_before_any_starts(memory, tmp_path):
    source = memory.gaussian_source()
    configs = {tmp_path / "a": CONFIGS["k2"], tmp_path / "b": DictionaryConfig(activation="gated")}
    sparse = TRAIN.model_copy(update={"step": "sparse", "beta1": 0.0})
    with pytest.raises(JaxdiffError, match="activation = gated"):
        train_together(configs, sparse, source, source.in_order, seed=0)
    assert not list(tmp_path.iterdir())
