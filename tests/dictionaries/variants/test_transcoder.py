"""Transcoders: other sources in than out, with and without a skip, against float64 NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.activations.normalization import Normalization
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries import decode, encode, fold, load, read_by, save, written_by
from jaxdiff.errors import JaxdiffError
from jaxdiff.training import calibrate, evaluate, fit

SIDES = [((0,), (2,)), ((0, 1), (2,)), ((1,), (0, 2)), ((2, 0), (0, 1))]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("reads, writes", SIDES)
def test_loss(variant, reads, writes, skip):
    settings = {"reads": reads, "writes": writes, "skip": skip, "aux": 0.0}
    config, d, x = variant.problem(sources=3, **settings)
    parts, gradient = variant.loss_of(config, d, x)
    p, X = variant.float64(d), np.asarray(x, np.float64)
    x_in, y = X[:, list(reads)], X[:, list(writes)]
    f = np.maximum(np.einsum("bmd,mdl->bl", x_in, p["W_enc"]) + p["b_enc"], 0)
    keys = f * np.linalg.norm(p["W_dec"], axis=-1).sum(axis=1)
    f = np.where(keys >= np.sort(keys.ravel())[-3 * len(X)], f, 0)
    guess = np.einsum("bl,lmd->bmd", f, p["W_dec"]) + p["b_dec"]
    if skip:
        guess = guess + np.einsum("bmd,mdne->bne", x_in, p["W_skip"])
    error = y - guess
    variant.close(parts.loss, np.linalg.norm(error, axis=-1).mean())
    variant.close(parts.residual, np.square(error).sum(axis=(0, 2)))
    variant.close(parts.total, np.square(y - y.mean(axis=0)).sum(axis=(0, 2)))
    unit = error / np.linalg.norm(error, axis=-1, keepdims=True) / error[..., 0].size
    variant.close(gradient.b_dec, -unit.sum(axis=0))
    variant.close(gradient.W_dec, -np.einsum("bl,bmd->lmd", f, unit))
    if skip:
        variant.close(gradient.W_skip, -np.einsum("bmd,bne->mdne", x_in, unit))


@pytest.mark.parametrize("skip", [False, True])
def test_it_learns_a_map_that_no_autoencoder_is(memory, skip, tmp_path):
    """The target has other directions than the source, and with a skip a linear part."""
    rng = np.random.default_rng(0)
    codes = (rng.random((4096, 8)) < 0.15) * rng.uniform(0.5, 1.5, (4096, 8))
    x = codes @ rng.normal(size=(8, 6))
    y = codes @ rng.normal(size=(8, 6)) + (x @ rng.normal(size=(6, 6)) if skip else 0)
    both = np.stack([x, y], axis=1).astype(np.float32) / 2
    config = DictionaryConfig(
        latents=32, k=2, reads=(0,), writes=(1,), skip=skip, dead_after=2000, aux=0.1
    )
    train = TrainConfig(steps=600, batch=256, lr=1e-2, warmup=0, decay_from=0.5)
    batches = (both[rng.integers(0, 4096, 256)] for _ in range(600))
    d, lines = fit(config, train, batches, seed=0)
    same = Normalization.identity((2, 6))

    def held_out():
        yield memory.batch_of(both[:1000])

    d = calibrate(d, held_out, same)
    found = evaluate(d, held_out, same)
    assert len(found.fve) == 1 and found.fve_all > 0.8
    assert lines[-1]["fve_all"] > 0.8
    if skip:
        bare = dataclasses.replace(d, W_skip=jnp.zeros_like(d.W_skip))
        assert evaluate(bare, held_out, same).fve_all < found.fve_all - 0.1
    save(d, tmp_path)
    again = load(tmp_path)
    assert jax.tree.structure(again) == jax.tree.structure(d)
    assert evaluate(again, held_out, same) == found


def test_folding_moves_both_sides(variant):
    settings = {"reads": (2, 0), "writes": (1,), "skip": True}
    _, d, _ = variant.problem(sources=3, **settings)
    d = dataclasses.replace(d, threshold=jnp.float32(0.5))
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(20, 3, 5)).astype(np.float32)
    shift = Normalization(rng.normal(size=(3, 5)).astype(np.float32), np.float32([0.5, 3.0, 2.0]))
    folded = fold(d, jnp.asarray(shift.mean), jnp.asarray(shift.scale))
    x = jnp.asarray(shift.apply(raw))
    f = encode(d, read_by(d, x))
    assert 0 < int((f > 0).sum()) < f.size
    variant.close(encode(folded, read_by(folded, jnp.asarray(raw))), f)
    expected = decode(d, f, read_by(d, x)) / shift.scale[1] + shift.mean[None, 1:2]
    variant.close(decode(folded, f, read_by(folded, jnp.asarray(raw))), expected)
    assert written_by(folded, jnp.asarray(raw)).shape == expected.shape


def test_a_skip_needs_what_was_read(variant):
    _, d, x = variant.problem(skip=True)
    with pytest.raises(ValueError, match="decode"):
        decode(d, encode(d, x))


def test_sources_that_are_not_there_are_refused():
    config = DictionaryConfig(latents=8, k=2, reads=(0,), writes=(2,))
    with pytest.raises(JaxdiffError, match="writes = \\(2,\\) does not fit"):
        fit(config, TrainConfig(steps=1, batch=4), [np.zeros((4, 2, 5), np.float32)], seed=0)
