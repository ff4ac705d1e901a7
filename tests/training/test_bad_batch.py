"""Batches with values that are not finite: they stop a training, or leave no trace but a count."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh
from jaxdiff.training import fit, train

CONFIG = DictionaryConfig(latents=16, k=2, dead_after=100)


def settings(**changes):
    base = {"steps": 12, "batch": 32, "lr": 1e-2, "warmup": 3, "beta1": 0.0, "log_every": 4}
    return TrainConfig(**base | {"checkpoint_every": 5} | changes)


class Spoiled:
    """A source that adds bad batches, at these places, to those of another one."""

    def __init__(self, source, bad, value=np.nan):
        self.source, self.bad, self.value = source, bad, value
        self.shape, self.normalization = source.shape, source.normalization
        self.in_order = source.in_order

    def batches(self, batch, *, seed, epochs=None):
        return self.Batches(self, self.source.batches(batch, seed=seed))

    class Batches:
        def __init__(self, owner, batches):
            self.owner, self.batches, self.at = owner, batches, 0

        def __iter__(self):
            return self

        def __next__(self):
            self.at += 1
            if self.at not in self.owner.bad:
                return next(self.batches)
            spoiled = self.owner.source.x[:32].copy()
            spoiled[17, 1, 3] = self.owner.value
            rows = next(self.owner.in_order())
            return dataclasses.replace(jax.tree.map(lambda a: a[:32], rows), x=spoiled)

        def get_state(self):
            return {"at": self.at, "rest": self.batches.get_state()}

        def set_state(self, state):
            self.at = state["at"]
            self.batches.set_state(state["rest"])


def run(source, folder, mesh=None, **changes):
    return train(
        CONFIG, settings(**changes), source, source.in_order, folder=folder, seed=0, mesh=mesh
    )


@pytest.mark.parametrize(("at", "value"), [(1, np.nan), (7, np.inf)])
def test_the_batch_is_named_and_earlier_checkpoints_stay(memory, tmp_path, at, value):
    source = Spoiled(memory.gaussian_source(), {at}, value)
    with pytest.raises(JaxdiffError, match=f"batch of step {at} has values that are not finite"):
        run(source, tmp_path, step="dense")
    kept = [int(p.name) for p in tmp_path.glob("checkpoints/*")]
    assert kept == ([] if at == 1 else [5])


@pytest.mark.parametrize(
    ("step", "mesh"), [("dense", (1, 1)), ("sparse", (1, 1)), ("dense", (2, 2)), ("sparse", (2, 2))]
)
def test_skipped_batches_leave_no_trace(memory, tmp_path, capfd, step, mesh):
    source, bad, mesh = memory.gaussian_source(), {1, 2, 7, 12}, make_mesh(*mesh)
    how = {"step": step, "bad_batch": "skip"}
    clean = run(source, tmp_path / "clean", mesh, steps=8, **how)
    found = run(Spoiled(source, bad), tmp_path / "bad", mesh, **how)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        ours, theirs = (np.asarray(getattr(r.dictionary, name)) for r in (found, clean))
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    lines = [(line["step"], line["skipped"], line["tokens"] / 32) for line in found.history]
    assert lines == [(4, 2, 2), (8, 3, 5), (11, 4, 8)]
    assert (found.steps, found.tokens) == (12, 8 * 32)
    assert all(line["loss"] > 0 for line in found.history)
    assert "step 7: the batch is not finite and is skipped (3 so far)" in capfd.readouterr().err


def test_the_count_goes_on_after_an_interruption(memory, tmp_path):
    class Broken(Exception):
        pass

    class Ends(Spoiled):
        class Batches(Spoiled.Batches):
            def __next__(self):
                if self.at == 10:
                    raise Broken
                return super().__next__()

    source, how = memory.gaussian_source(), {"step": "dense", "bad_batch": "skip"}
    with pytest.raises(Broken):
        run(Ends(source, {2, 4, 7}), tmp_path, **how)
    found = run(Spoiled(source, {2, 4, 7}), tmp_path, **how)
    lines = [(line["skipped"], line["tokens"] / 32) for line in found.history]
    assert lines == [(2, 2), (3, 5), (3, 9)] and found.tokens == 9 * 32


def test_fit_stops_or_skips_too(memory):
    source, good = memory.gaussian_source(), settings(steps=6)
    rows = [next(source.in_order()).x[i : i + 32] for i in range(0, 192, 32)]
    spoiled = [np.full_like(rows[0], np.nan), *rows[:2], np.full_like(rows[0], np.inf), *rows[2:]]
    with pytest.raises(JaxdiffError, match="batch 1 has values that are not finite"):
        fit(CONFIG, good, spoiled, seed=0)
    clean, _ = fit(CONFIG, good, rows, seed=0)
    found, lines = fit(CONFIG, settings(steps=8, bad_batch="skip"), spoiled, seed=0)
    assert [(line["step"], line["tokens"] / 32) for line in lines] == [(4, 2), (8, 6)]
    np.testing.assert_allclose(found.W_dec, clean.W_dec, rtol=1e-6)


def test_nothing_but_bad_batches(memory, tmp_path):
    source = Spoiled(memory.gaussian_source(), set(range(20)))
    with pytest.raises(JaxdiffError, match="not finite"):
        run(source, tmp_path, bad_batch="skip", step="dense")
