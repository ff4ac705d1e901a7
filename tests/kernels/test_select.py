"""Selection as a list against a stable sort in NumPy, on one device and with latents split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jaxdiff.kernels.bitmap import entries, pack, pack_places, places
from jaxdiff.kernels.scores import Held, Share
from jaxdiff.kernels.select import select

from jaxdiff.mesh import DATA, LATENT, make_mesh

ROWS, LATENTS, SIZE = 37, 48, 300


def matrix(kind, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return rng.normal(size=(ROWS, LATENTS))
    if kind == "ties":
        return rng.integers(-3, 4, (ROWS, LATENTS)).astype(float)
    if kind == "equal":
        return np.ones((ROWS, LATENTS))
    if kind == "wide":
        return (rng.random((ROWS, LATENTS)) < 0.2) * 10.0 ** rng.uniform(-37, 37, (ROWS, LATENTS))
    return np.where(rng.random((ROWS, LATENTS)) < 0.05, 1.0, -1.0)


def marked(found, shape=(ROWS, LATENTS)):
    mask = np.zeros(shape, bool)
    n = int(found.offsets[-1])
    mask[np.asarray(found.indices)[:n], np.asarray(found.groups)[:n]] = True
    assert mask.sum() == n  # No place is listed twice.
    return mask


@functools.partial(jax.jit, static_argnames="size")
def run(pre, bias, norms, n, near, size=SIZE):
    return select(Held(pre, bias, norms, Share(jnp.int32(0))), n, size=size, near=near)


KINDS = ("normal", "ties", "equal", "wide", "sparse")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("near", [1e-30, 1.0, 1e30])
def test_selects_what_a_stable_sort_selects_from_any_guess(brute_force, kind, near):
    pre = matrix(kind).astype(np.float32)
    ones = np.ones(LATENTS, np.float32)
    guess = np.float32(near).view(np.int32)
    for n in (0, 1, 17, 150, SIZE):
        found = run(pre, 0 * ones, ones, jnp.int32(n), jnp.int32(guess))
        expected = brute_force(pre, n)
        np.testing.assert_array_equal(marked(found.entries), expected)
        if expected.any():
            assert np.int32(found.threshold).view(np.float32) == pre[expected].min()


def test_entries_are_sorted_by_latent_then_row(brute_force):
    pre = matrix("normal").astype(np.float32)
    ones = np.ones(LATENTS, np.float32)
    found = run(pre, 0 * ones, ones, jnp.int32(200), jnp.int32(0x3F800000)).entries
    latents, rows = np.nonzero(brute_force(pre, 200).T)
    np.testing.assert_array_equal(found.groups[:200], latents)
    np.testing.assert_array_equal(found.indices[:200], rows)
    np.testing.assert_array_equal(found.offsets, np.searchsorted(latents, np.arange(LATENTS + 1)))


def test_scores_are_biased_and_weighted(brute_force):
    rng = np.random.default_rng(3)
    pre = matrix("normal", 3).astype(np.float32)
    bias = rng.normal(size=LATENTS).astype(np.float32)
    norms = rng.random(LATENTS).astype(np.float32)
    norms[5] = 0  # A latent without a decoder is never active.
    found = run(pre, bias, norms, jnp.int32(100), jnp.int32(0x3F800000))
    scores = (pre + bias) * norms
    np.testing.assert_array_equal(marked(found.entries), brute_force(scores, 100))


def test_infinity_is_selected_and_nan_is_not():
    pre = np.full((ROWS, LATENTS), -1, np.float32)
    pre[2, :4] = 1.0, np.nan, np.inf, -np.inf
    ones = np.ones(LATENTS, np.float32)
    for n, expected in ((1, [[2, 2]]), (5, [[2, 0], [2, 2]])):
        found = run(pre, 0 * ones, ones, jnp.int32(n), jnp.int32(0x3F800000))
        assert np.argwhere(marked(found.entries)).tolist() == expected


def test_a_good_guess_takes_one_pass_and_a_bad_one_more():
    pre = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    ones = np.ones(256, np.float32)
    arguments = pre, 0 * ones, ones, jnp.int32(512)
    exact = run(*arguments, jnp.int32(0x3F800000), size=512).threshold
    assert int(run(*arguments, exact, size=512).passes) == 1
    assert int(run(*arguments, exact + (1 << 24), size=512).passes) > 1


@pytest.mark.parametrize("mesh_shape", [(1, 2), (2, 2), (1, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_mesh_selects_the_same_set(brute_force, kind, mesh_shape):
    mesh = make_mesh(*mesh_shape)
    axes = (DATA, LATENT)
    local = LATENTS // mesh.size
    pre = matrix(kind).astype(np.float32)
    ones = np.ones(LATENTS, np.float32)

    def part(pre, bias, norms):
        first = jax.lax.axis_index(axes).astype(jnp.int32) * local
        scores = Held(pre, bias, norms, Share(first, axes))
        chosen = select(scores, jnp.int32(123), size=SIZE, near=jnp.int32(0x3F000000))
        found = chosen.entries
        valid = jnp.arange(SIZE, dtype=jnp.int32) < found.offsets[-1]
        places = jnp.where(valid, found.indices * LATENTS + found.groups + first, -1)
        return places, chosen.threshold[None]

    run = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(P(None, axes), P(axes), P(axes)),
        out_specs=(P(axes), P(axes)),
        check_vma=False,
    )
    places, thresholds = jax.jit(run)(pre, 0 * ones, ones)
    mask = np.zeros(pre.size, bool)
    mask[np.asarray(places)[np.asarray(places) >= 0]] = True
    np.testing.assert_array_equal(mask.reshape(pre.shape), brute_force(pre, 123))
    assert len(set(np.asarray(thresholds).tolist())) == 1


@pytest.mark.parametrize("shape", [(1, 1), (31, 5), (32, 8), (65, 3)])
def test_bit_maps_list_what_was_packed(shape):
    mask = np.random.default_rng(0).random(shape) < 0.4
    mask[0, 0] = True
    words = pack(jnp.asarray(mask))
    assert int(places(words)) == mask.sum()
    found = entries(words, int(mask.sum()) + 3)
    np.testing.assert_array_equal(marked(found, shape), mask)
    rows, latents = np.nonzero(mask)  # By row, as groups of the transposed map.
    pad = np.zeros(4, np.int32)
    again = pack_places(
        jnp.asarray(np.append(rows, pad), jnp.int32),
        jnp.asarray(np.append(latents, pad), jnp.int32),
        jnp.int32(len(rows)),
        (shape[1], shape[0]),
    )
    by_row = entries(again, int(mask.sum()) + 3)
    np.testing.assert_array_equal(marked(by_row, shape[::-1]), mask.T)
