"""Batches ahead of the steps: their positions, what is counted as waiting, and the benchmark."""

import json
import time

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import cli
from jaxdiff.activations import Recorded, write_store
from jaxdiff.config import DictionaryConfig, HarvestConfig, TrainConfig, load
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import DATA, make_mesh, sharding
from jaxdiff.training.feed import Feed
from jaxdiff.training.throughput import measure

CONFIG = DictionaryConfig(latents=16, k=2)
TRAIN = TrainConfig(batch=32, step="dense")


class Slow:
    """Batches that take a while to read."""

    def __init__(self, batches, seconds):
        self.batches, self.seconds, self.read = batches, seconds, 0
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __iter__(self):
        return self

    def __next__(self):
        self.read += 1
        time.sleep(self.seconds)
        return next(self.batches)


class SlowSource:
    def __init__(self, source, seconds):
        self.source, self.seconds = source, seconds
        self.shape, self.normalization = source.shape, source.normalization
        self.in_order = source.in_order

    def batches(self, batch, *, seed, epochs=None):
        return Slow(self.source.batches(batch, seed=seed), self.seconds)


def test_one_batch_is_ahead_and_positions_are_of_what_was_taken(memory):
    source, mesh = memory.gaussian_source(), make_mesh(2, 2)
    batches, plain = Slow(source.batches(8, seed=0), 0), source.batches(8, seed=0)
    with Feed(batches, mesh) as feed:
        assert feed.position == {"at": 0}
        for number in range(1, 4):
            x = feed.take()
            assert x.sharding.is_equivalent_to(sharding(mesh, DATA), 3)
            np.testing.assert_array_equal(x, next(plain).x)
            feed.prefetch(x)
            assert feed.position == {"at": number}
            assert batches.read == number + 1


def test_only_what_the_devices_had_nothing_to_do_in_is_waiting(memory, monkeypatch):
    """Steps of 0.2 s and batches of 0.3 s: of each 0.3 s, 0.1 s is waiting."""
    from jaxdiff.training import feed as module

    def step(ends):
        time.sleep(max(0.0, ends - time.perf_counter()))
        return time.perf_counter()

    monkeypatch.setattr(module, "_when_done", step)
    source = memory.gaussian_source()
    for seconds, expected in ((0.3, 1 / 3), (0.05, 0.0)):
        with Feed(Slow(source.batches(8, seed=0), seconds), make_mesh(1, 1)) as feed:
            feed.take()
            feed.waited()
            ends = time.perf_counter()
            for _ in range(4):
                ends = max(ends, time.perf_counter()) + 0.2
                feed.prefetch(ends)
                feed.take()
            assert feed.waited() == pytest.approx(expected, abs=0.12)
        assert feed.waited() == 0


def test_the_end_of_a_source_is_told_when_a_batch_is_asked_for(memory):
    source = memory.gaussian_source()

    class Two(Slow):
        def __next__(self):
            if self.read == 2:
                raise StopIteration
            return super().__next__()

    with Feed(Two(source.batches(8, seed=0), 0), make_mesh(1, 1)) as feed:
        feed.prefetch(feed.take())
        feed.prefetch(feed.take())
        with pytest.raises(StopIteration):
            feed.take()


def test_the_slower_side_is_the_limit(memory):
    source = memory.gaussian_source()
    slow = measure([CONFIG], TRAIN, SlowSource(source, 0.2), seconds=1.0)
    assert slow.limit == "source" and slow.source == pytest.approx(32 / 0.2, rel=0.3)
    assert slow.together < 1.2 * slow.source and slow.waited > 0.5
    wide = [DictionaryConfig(latents=2048, k=2)] * 2
    fast = measure(wide, TRAIN, source, seconds=0.5, mesh=make_mesh(1, 2))
    assert fast.limit == "step" and fast.waited < slow.waited
    assert json.loads(json.dumps(fast.to_json()))["limit"] == "step"


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_command_measures_a_store(memory, tmp_path, capfd, dtype):
    rows = memory.batch_of(memory.gaussian_source().x)
    write_store(
        tmp_path / "s", Recorded([rows], site="s"), config=HarvestConfig(dtype=dtype, chunk=64)
    )
    path = tmp_path / "config.json"
    small = {"batch_topk": {"latents": 16, "k": 2}}
    preset = load("quickstart").model_dump(mode="json") | {"dictionaries": small}
    path.write_text(json.dumps(preset | {"mesh": {"data": 1, "latent": 1}}))
    words = ["--config", str(path), "--seconds", "0.2", "--train.batch", "32"]
    kept = tmp_path / "found.json"
    assert cli.main(["bench", "feed", str(tmp_path / "s"), *words, "--json", str(kept)]) == 0
    said = capfd.readouterr().out
    assert "rows/s" in said and "MB/s of the store" in said and "limit" in said
    assert set(json.loads(kept.read_text())) == {"source", "step", "together", "waited", "limit"}
    assert cli.main(["bench", "feed", str(tmp_path / "none"), *words]) == 2
    assert "no complete store" in capfd.readouterr().err


def test_a_mesh_that_does_not_fit_is_refused(memory):
    with pytest.raises(JaxdiffError, match="latents = 16 cannot be split over 3"):
        measure([CONFIG], TRAIN, memory.gaussian_source(), seconds=1.0, mesh=make_mesh(1, 3))


def test_a_step_under_way_is_waited_for_by_a_thread_only():
    from jaxdiff.training import feed

    before = time.perf_counter()
    assert before < feed._when_done([jnp.ones(3), None]) < time.perf_counter()
