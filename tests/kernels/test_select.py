"""Selection as a list against a stable sort in NumPy, on one device and with latents split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jaxdiff.kernels import select as select_module
from jaxdiff.kernels.bitmap import by_index, entries, pack, pack_places, places
from jaxdiff.kernels.scores import Held, Share, stream
from jaxdiff.kernels.select import select
from jaxdiff.kernels.select_rows import select_rows

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


def scores(how, pre, bias, norms, share=None):
    """Returns scores whose products are `pre`, exactly: the other factor is a unit matrix."""
    share = Share(jnp.int32(0)) if share is None else share
    if how == "held":
        return Held(pre, bias, norms, share)
    latents = share.first + jnp.arange(norms.size)
    W = (latents[:, None] == jnp.arange(pre.shape[1])[None, :]).astype(jnp.float32)
    return stream(pre, W, bias, norms, jnp.ones(norms.size), share, jnp.float32)


@functools.partial(jax.jit, static_argnames=("size", "how"))
def run(pre, bias, norms, n, near, size=SIZE, how="held"):
    return select(scores(how, pre, bias, norms), n, size=size, near=near)


HOW = ("held", "streamed")
KINDS = ("normal", "ties", "equal", "wide", "sparse")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("near", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("how", HOW)
def test_selects_what_a_stable_sort_selects_from_any_guess(brute_force, kind, near, how):
    pre = matrix(kind).astype(np.float32)
    ones = np.ones(LATENTS, np.float32)
    guess = np.float32(near).view(np.int32)
    for n in (0, 1, 17, 150, SIZE):
        found = run(pre, 0 * ones, ones, jnp.int32(n), jnp.int32(guess), how=how)
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


@pytest.mark.parametrize("how", HOW)
def test_scores_are_biased_and_weighted(brute_force, how):
    rng = np.random.default_rng(3)
    pre = matrix("normal", 3).astype(np.float32)
    bias = rng.normal(size=LATENTS).astype(np.float32)
    norms = rng.random(LATENTS).astype(np.float32)
    norms[5] = 0  # A latent without a decoder is never active.
    found = run(pre, bias, norms, jnp.int32(100), jnp.int32(0x3F800000), how=how)
    np.testing.assert_array_equal(marked(found.entries), brute_force((pre + bias) * norms, 100))


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


def select_any(scores):
    return select(scores, jnp.int32(123), size=SIZE, near=jnp.int32(0x3F000000))


def select_three(scores):
    return select_rows(scores, jnp.int32(3), most=3)


@pytest.mark.parametrize("how, mesh_shape", [("held", (2, 2)), ("streamed", (1, 8))])
@pytest.mark.parametrize("kind", ["normal", "ties", "equal"])
@pytest.mark.parametrize("rule", [select_any, select_three])
def test_every_mesh_selects_the_same_set(brute_force, kind, how, mesh_shape, rule):
    mesh = make_mesh(*mesh_shape)
    axes = (DATA, LATENT)
    local = LATENTS // mesh.size
    pre = matrix(kind).astype(np.float32)
    ones = np.ones(LATENTS, np.float32)

    def part(pre, bias, norms):
        first = jax.lax.axis_index(axes).astype(jnp.int32) * local
        chosen = rule(scores(how, pre, bias, norms, Share(first, axes)))
        found = chosen.entries
        valid = jnp.arange(found.groups.size, dtype=jnp.int32) < found.offsets[-1]
        places = jnp.where(valid, found.indices * LATENTS + found.groups + first, -1)
        return places, chosen.threshold[None]

    run = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(P(None, axes) if how == "held" else P(), P(axes), P(axes)),
        out_specs=(P(axes), P(axes)),
        check_vma=False,
    )
    places, thresholds = jax.jit(run)(pre, 0 * ones, ones)
    mask = np.zeros(pre.size, bool)
    mask[np.asarray(places)[np.asarray(places) >= 0]] = True
    each = brute_force(pre, 123) if rule is select_any else by_row(brute_force, pre, 3)
    np.testing.assert_array_equal(mask.reshape(pre.shape), each)
    assert len(set(np.asarray(thresholds).tolist())) == 1


def by_row(brute_force, keys, n):
    return np.concatenate([brute_force(row[None], n) for row in keys])


@functools.partial(jax.jit, static_argnames="how")
def run_rows(pre, n, how):
    ones = jnp.ones(pre.shape[1])
    return select_rows(scores(how, pre, 0 * ones, ones), n, most=4)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_select_what_a_stable_sort_of_each_selects(brute_force, kind, how):
    pre = np.tile(matrix(kind), 7)[:, :333].astype(np.float32)  # Groups of 20, filled up.
    pre[3] = -1.0
    pre[4, 9:] = -1.0
    pre[5] = np.nan
    for n in (1, 3, 4):
        found = run_rows(pre, jnp.int32(n), how)
        expected = by_row(brute_force, np.where(np.isnan(pre), 0, pre), n)
        np.testing.assert_array_equal(marked(found.entries, pre.shape), expected)


def test_rows_whose_largest_are_in_one_group_are_selected_all_the_same(brute_force, monkeypatch):
    monkeypatch.setattr("jaxdiff.kernels.scores._HELD", 64 * 320)  # Three parts of 32 rows.
    pre = np.random.default_rng(0).normal(size=(96, 320)).astype(np.float32)
    pre[:, ::16] += 10.0  # Neighbours of a group of 20 latents are 16 apart.
    found = run_rows(pre, jnp.int32(4), "held")
    assert int(found.passes) == 3
    np.testing.assert_array_equal(marked(found.entries, pre.shape), by_row(brute_force, pre, 4))


def streamed(rows, latents, inner, scale=1.0):
    """Returns scores of bfloat16 factors of which a row and a latent are larger than others.

    Rows are twice the same half, and of two latents each has the other's halves: every score is
    there twice, but for what sums in another order round off.
    """
    rng = np.random.default_rng(0)
    half, one, other = (
        jnp.asarray(rng.normal(size=(n, inner // 2)), jnp.float32)
        for n in (rows, latents // 2, latents // 2)
    )
    x = jnp.concatenate([half, half], axis=1).at[3].multiply(scale)
    W = [jnp.concatenate(pair, axis=1) for pair in ((one, other), (other, one))]
    W = jnp.concatenate(W).at[5].multiply(scale)
    squares, ones = jnp.sum(jnp.square(W), axis=1), jnp.ones(latents)
    return stream(x, W, 0 * ones, ones, squares, Share(jnp.int32(0)), jnp.bfloat16)


def test_sums_in_another_order_lose_no_candidate(brute_force):
    """The first pivot is the n-th product; the n largest of the other sums are selected."""

    @jax.jit
    def both():
        made = streamed(64, 128, 96)
        rows, latents = jnp.divmod(jnp.arange(64 * 128, dtype=jnp.int32), 128)
        other = made.values(rows, latents, jnp.int32(rows.size))
        return made.by_rows(lambda keys: keys()), other.reshape(64, 128)

    @jax.jit
    def run(n, near):
        return select(streamed(64, 128, 96), n, size=900, near=near).entries

    products, other = (np.asarray(a) for a in both())
    assert not np.array_equal(products, other)
    for n in range(400, 900, 3):
        pivot = np.sort(products, axis=None)[-n].view(np.int32)
        found = run(jnp.int32(n), jnp.int32(pivot + select_module._MARGIN))
        np.testing.assert_array_equal(marked(found, (64, 128)), brute_force(other, n))


def test_a_few_large_rows_and_latents_cost_no_further_pass():
    @jax.jit
    def run(near):
        return select(streamed(96, 256, 1024, 30.0), jnp.int32(900), size=900, near=near)

    assert int(run(run(jnp.int32(0x3F800000)).threshold).passes) == 1


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
    turned = entries(again, int(mask.sum()) + 3)
    np.testing.assert_array_equal(marked(turned, shape[::-1]), mask.T)
    offsets, slots = by_index(found, shape[0])
    np.testing.assert_array_equal(offsets, turned.offsets)
    n = len(rows)
    assert np.all(np.asarray(slots)[n:] == len(slots))
    np.testing.assert_array_equal(np.asarray(turned.groups)[slots[:n]], found.indices[:n])
    np.testing.assert_array_equal(np.asarray(turned.indices)[slots[:n]], found.groups[:n])
