"""Differences as a source of their own: what a diff-SAE is trained on."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.activations import DifferenceSource, Recorded, Store, StoreSource, write_store
from jaxdiff.config import DictionaryConfig, HarvestConfig, TrainConfig
from jaxdiff.dictionaries import decode, encode
from jaxdiff.errors import JaxdiffError
from jaxdiff.training import train
from jaxdiff.types import ActivationBatch


def rows(count=3000, width=6, shared=40.0, seed=0):
    """Two models with one large part in common and four directions that only the second has."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(count, 1, width)) * shared + 7
    codes = (rng.random((count, 4)) < 0.2) * rng.uniform(0.5, 1.5, (count, 4))
    own = np.stack([np.zeros((count, width)), codes @ rng.normal(size=(4, width))], axis=1)
    zeros = np.zeros(count, np.int32)
    mask = rng.random(count) < 0.9
    x = (common + own).astype(np.float32)
    x[~mask] = 1e6
    return ActivationBatch(x, zeros, zeros, np.arange(count, dtype=np.int32), zeros, zeros, mask)


def source_of(batch, folder, normalize=True):
    config = HarvestConfig(dtype="float32", chunk=500, normalize=normalize)
    write_store(folder, Recorded([batch], site="x"), config=config)
    return StoreSource(Store.open(folder))


def test_normalisation_is_that_of_the_differences(tmp_path):
    batch = rows()
    source = DifferenceSource(source_of(batch, tmp_path / "a"))
    d = (batch.x[:, 1] - batch.x[:, 0])[batch.mask].astype(np.float64)
    np.testing.assert_allclose(source.normalization.mean[0], d.mean(axis=0), rtol=1e-5)
    scale = 1 / np.sqrt(np.square(d - d.mean(axis=0)).mean())
    np.testing.assert_allclose(source.normalization.scale, [scale], rtol=1e-5)
    assert source.shape == (1, 6)
    raw = DifferenceSource(source_of(batch, tmp_path / "b", normalize=False))
    assert not raw.normalization.mean.any() and raw.normalization.scale == 1


def test_batches_are_the_differences_of_the_sources_batches_and_go_on(tmp_path):
    inner = source_of(rows(), tmp_path)
    both, diffs = inner.batches(64, seed=3), DifferenceSource(inner).batches(64, seed=3)
    state = None
    for i in range(8):
        x, d = next(both), next(diffs)
        np.testing.assert_array_equal(d.x[:, 0], np.float32(x.x[:, 1]) - np.float32(x.x[:, 0]))
        np.testing.assert_array_equal(d.sequences, x.sequences)
        state = diffs.get_state() if i == 3 else state
    again = DifferenceSource(inner).batches(64, seed=3)
    again.set_state(state)
    for _ in range(4):
        last = next(again)
    np.testing.assert_array_equal(last.x, d.x)


def test_a_diff_sae_sees_what_a_crosscoder_of_the_same_size_misses(tmp_path):
    """Four small new directions beside a large common part; both have the same latents and k."""
    source = source_of(rows(), tmp_path / "store")
    held = rows(seed=0)

    def validation():
        yield dataclasses.replace(held, x=held.x[:, 1:] - held.x[:, :1])

    config = DictionaryConfig(latents=12, k=1, dead_after=2000, difference=True)
    steps = TrainConfig(steps=300, batch=256, lr=1e-2, warmup=0, decay_from=0.5)
    found = train(
        config, steps, DifferenceSource(source), validation, folder=tmp_path / "d", seed=0
    )
    assert found.dictionary.W_dec.shape == (12, 1, 6)
    assert found.evaluation.fve_all > 0.8
    plain = config.model_copy(update={"difference": False})
    both = train(plain, steps, source, lambda: iter([held]), folder=tmp_path / "c", seed=0)
    x = both.normalization.apply(held.x[held.mask])
    guess = both.normalization.invert(
        np.asarray(decode(both.dictionary, encode(both.dictionary, jnp.asarray(x))))
    )
    d, e = (a[:, 1] - a[:, 0] for a in (held.x[held.mask], guess))
    explained = 1 - np.square(d - e).sum() / np.square(d - d.mean(axis=0)).sum()
    assert explained < found.evaluation.fve_all - 0.3


def test_other_sources_are_refused(tmp_path):
    batch = rows()
    three = dataclasses.replace(batch, x=np.concatenate([batch.x, batch.x[:, :1]], axis=1))
    with pytest.raises(JaxdiffError, match="two models at one site, these are of 3"):
        DifferenceSource(source_of(three, tmp_path))
