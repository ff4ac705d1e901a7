"""Worlds in lockstep against runs of their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.edits import Add, FromWorld, Set, Skip, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import Between, Tap, init, run, run_together, traces, unstack

SITE = "blocks.*.resid_post"


@pytest.fixture(scope="module")
def pair(llama):
    rng = np.random.default_rng(3)
    other = jax.tree.map(lambda x: x + rng.normal(0, 0.05, x.shape).astype(np.float32), llama)
    return llama, other


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 24, (2, 6)).astype(np.int32)


def _close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


@pytest.mark.parametrize("layout", [lambda lm: lm, unstack])
def test_without_edits_each_world_is_its_own_run(pair, tokens, layout):
    sites = (SITE, "blocks.2.attn.q", "embed")
    together = run_together(tuple(map(layout, pair)), tokens, sites)
    for lm, logits, found in zip(pair, together.logits, together.taps, strict=True):
        expected = run(lm, tokens, sites)
        _close(logits, expected[0])
        _close(found, expected[1])


@pytest.mark.parametrize(
    "site", ["blocks.1.mlp_out", "blocks.2.attn.z", "embed", "blocks.3.attn.q"]
)
def test_patching_from_the_base_is_setting_what_it_computed(pair, tokens, site):
    base, ft = pair
    patch = edit(site, FromWorld(0), positions=[1, 4])
    together = run_together(pair, tokens, edits=((), (patch,)))
    source = run(base, tokens, (site,), logits=False)[1][site]
    _close(together.logits[1], run(ft, tokens, (), (edit(site, Set(source), positions=[1, 4]),))[0])
    _close(together.logits[0], run(base, tokens)[0])
    assert np.abs(together.logits[1] - run(ft, tokens)[0]).max() > 1e-3


def test_patching_every_layer_makes_the_other_model(pair, tokens):
    patch = edit(SITE, FromWorld(0), layers=3)
    final = tuple(dataclasses.replace(lm, params={**lm.params}) for lm in pair)
    final[1].params.update(
        final_norm=pair[0].params["final_norm"], unembedding=pair[0].params["unembedding"]
    )
    together = run_together(final, tokens, edits=((), (patch,)))
    _close(together.logits[1], together.logits[0])


def test_one_model_on_several_texts(pair, tokens):
    """Patching from another prompt needs no run before it."""
    lm, other = pair[0], tokens[:, ::-1].copy()
    both = np.stack([tokens, other])
    edits = ((), (edit(SITE, FromWorld(0), layers=1, positions=2),))
    together = run_together((lm, lm), both, edits=edits)
    source = run(lm, tokens, (SITE,))[1][SITE][1]
    expected = run(lm, other, (), (edit("blocks.1.resid_post", Set(source), positions=2),))[0]
    _close(together.logits[1], expected)


def test_three_worlds_patch_both_ways(pair, tokens):
    base, ft = pair
    site = "blocks.1.resid_post"
    edits = ((), (edit(site, FromWorld(0)),), (edit(site, FromWorld(1)),))
    a, b, c = run_together((base, ft, base), tokens, edits=edits).logits
    _close(c, a)
    assert np.abs(b - a).max() > 1e-3


def test_between_sees_all_worlds(pair, tokens):
    def norm(values, at):
        return jnp.linalg.norm(values[1] - values[0], axis=-1)

    between = tuple(Between(site, norm) for site in (SITE, "blocks.2.attn.z", "logits"))
    found = run_together(pair, tokens, between=between).between
    for asked in between:
        a, b = (run(lm, tokens, (asked.site,))[1][asked.site] for lm in pair)
        _close(found[asked.site], jnp.linalg.norm(b - a, axis=-1))


def test_edits_and_reducers_work_in_each_world(pair, tokens):
    from jaxdiff.edits import reducers

    tap = Tap("blocks.2.resid_post", reduce=reducers.Last())
    own = edit("blocks.0.mlp_out", Add(np.ones(16, np.float32)))
    together = run_together(pair, tokens, (tap,), ((own,), ()))
    for lm, found, edits in zip(pair, together.taps, ((own,), ()), strict=True):
        _close(found, run(lm, tokens, (tap,), edits)[1])


def test_gradients_reach_both_models(pair, tokens):
    def loss(params):
        lms = tuple(dataclasses.replace(lm, params=p) for lm, p in zip(pair, params, strict=True))
        patch = edit(SITE, FromWorld(0), layers=2)
        return jnp.mean(run_together(lms, tokens, edits=((), (patch,))).logits[1] ** 2)

    base, ft = jax.grad(loss)(tuple(lm.params for lm in pair))
    up = (
        np.asarray(base["blocks"]["mlp"]["up"]["weight"]),
        np.asarray(ft["blocks"]["mlp"]["up"]["weight"]),
    )
    # What the fine-tune computes before the patched layer does not matter, and nothing of the base
    # after it.
    assert [np.abs(up[0][i]).max() > 0 for i in range(4)] == [True, True, True, False]
    assert [np.abs(up[1][i]).max() > 0 for i in range(4)] == [False, False, False, True]


def test_other_leaves_are_the_same_program(pair, tokens):
    def go(layer):
        return run_together(pair, tokens, edits=((), (edit(SITE, FromWorld(0), layers=layer),)))

    go(0)
    before = traces("run_together")
    go(2)
    assert traces("run_together") == before


def test_models_that_do_not_go_together_are_refused(pair, tokens):
    shallow = init(dataclasses.replace(pair[0].spec, n_layers=2), key=jax.random.key(0))
    with pytest.raises(JaxdiffError, match="different blocks: 4, 2"):
        run_together((pair[0], shallow), tokens)
    with pytest.raises(JaxdiffError, match="layouts"):
        run_together((pair[0], unstack(pair[1])), tokens)
    small = init(dataclasses.replace(pair[0].spec, vocab_size=20), key=jax.random.key(0))
    with pytest.raises(JaxdiffError, match="vocabularies"):
        run_together((pair[0], small), tokens)
    with pytest.raises(JaxdiffError, match="2 models"):
        run_together(pair, tokens, edits=((),))
    narrow = init(dataclasses.replace(pair[0].spec, d_mlp=20), key=jax.random.key(0))
    with pytest.raises(JaxdiffError, match="does not fit"):
        patch = edit("blocks.1.mlp.post", FromWorld(0))
        run_together((pair[0], narrow), tokens, edits=((), (patch,)))
    with pytest.raises(JaxdiffError, match="no world 1"):
        run_together(pair, tokens, edits=((), (edit(SITE, FromWorld(1)),)))


def test_a_world_without_the_value_is_never_another_one(pair, tokens):
    """Worlds keep their numbers where one of them skips the block."""
    skip, site = edit("blocks.2", Skip()), "blocks.2.resid_post"
    three = (*pair, pair[0])
    with pytest.raises(JaxdiffError, match="world 0 has no value"):
        run_together(three, tokens, edits=((skip,), (), (edit(site, FromWorld(0)),)))
    found = run_together(three, tokens, edits=((skip,), (), (edit(site, FromWorld(1)),)))
    source = run(pair[1], tokens, (site,), logits=False)[1][site]
    _close(found.logits[2], run(pair[0], tokens, (), (edit(site, Set(source)),))[0])
    for asked in (site, SITE):
        with pytest.raises(JaxdiffError, match="skipped in one of the worlds"):
            between = (Between(asked, lambda values, at: values[0]),)
            run_together(pair, tokens, edits=((skip,), ()), between=between)


def test_the_last_logits_can_be_patched(pair, tokens):
    patch = (edit("logits", FromWorld(0)),)
    a, b = run_together(pair, tokens, edits=((), patch), logits="last").logits
    _close(b, a)
    _close(a, run(pair[0], tokens, logits="last")[0])


def test_between_knows_the_layer(pair, tokens):
    between = (Between(SITE, lambda values, at: at.layer + 0),)
    assert run_together(pair, tokens, between=between).between[SITE].tolist() == [0, 1, 2, 3]
