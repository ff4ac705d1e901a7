"""What the programs with edits do, and what they leave out."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.dictionaries import Dictionary
from jaxdiff.edits import (
    Add,
    Backward,
    Clamp,
    FromRow,
    Heads,
    Latents,
    Lerp,
    LowRank,
    Noise,
    Patch,
    PerLayer,
    Reconstruct,
    Scale,
    Set,
    Skip,
    Subspace,
    ToMean,
    edit,
)
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh, sharding
from jaxdiff.models import LM, run, shapes, traces, unstack
from jaxdiff.models._check import checked
from jaxdiff.models._forward import Visitor, between_layers
from jaxdiff.models._lm import abstract
from jaxdiff.models._run import embed, unembed, world_of
from jaxdiff.models._sharding import shardings

QUICK = {"xla_backend_optimization_level": 0}
D, N = 8, 3


def _dictionary():
    rng = np.random.default_rng(1)
    shapes = ((1, D, 6), (6,), (6, 1, D), (1, D))
    arrays = [jnp.asarray(rng.normal(0, 0.5, s), jnp.float32) for s in shapes]
    return Dictionary(*arrays, jnp.zeros(()), activation="relu", k=2.0, code_norm="none")


def _every(rows):
    """An edit of every kind, the i-th of them in the rows of the i-th mask."""
    rng = np.random.default_rng(2)

    def array(*shape):
        return rng.normal(size=shape).astype(np.float32)

    dictionary = _dictionary()
    latents = Latents(dictionary, np.array([0, 3], np.int32), normalization=None)
    some = [
        ("embed", Set(array(D)), {}),
        ("blocks.0.resid_pre", Add(array(D), 2.0), {"positions": np.array([1, -1])}),
        ("blocks.0.attn.z", Scale(array(2, 1)), {}),
        ("blocks.0.attn.pattern", Scale(array(2, 1, 1)), {"heads": np.array([0])}),
        ("blocks.1.attn_out", Lerp(array(D), np.float32(0.5)), {}),
        ("blocks.1.mlp_out", Clamp(-0.1, 0.1), {}),
        ("blocks.1.resid_mid", ToMean(), {}),
        ("blocks.*.resid_mid", Noise(jax.random.key(0), 0.3), {"layers": np.array([0, 2])}),
        ("blocks.*.mlp_out", LowRank(array(2, D), array(D, 2)), {}),
        ("blocks.*.attn_out", PerLayer(Add(array(N, D))), {"layers": np.array([True] * N)}),
        ("blocks.1.resid_post", Patch(array(1, 3, D), np.array([0, 2, 1])), {}),
        ("blocks.2.resid_pre", FromRow(np.array([2, 0, 1])), {}),
        ("blocks.2.resid_pre", Set(0.0), {"view": Subspace(array(D, 2))}),
        ("blocks.2.resid_mid", Scale(0.5), {"view": Subspace(array(D, 2), complement=True)}),
        ("blocks.2.mlp_out", Set(0.0), {"view": latents}),
        ("blocks.2.resid_post", Reconstruct(dictionary, normalization=None), {}),
        ("final_norm", Scale(array(2, 1)), {"view": Heads(2)}),
        ("logits", Backward(Scale(0.5)), {}),
    ]
    return tuple(edit(site, op, rows=rows[i], **more) for i, (site, op, more) in enumerate(some))


COUNT = len(_every(np.ones((99, 3), bool)))


@pytest.mark.parametrize("name", ["llama", "experts"])
def test_an_edit_in_another_row_changes_no_bit_of_mine(model, tokens, name):
    lm = model(name)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def program(rows):
        return run(lm, tokens, ("blocks.*.resid_post",), _every(rows))

    nothing = np.zeros((COUNT, 3), bool)
    logits, found = program(nothing)
    np.testing.assert_allclose(logits, run(lm, tokens)[0], rtol=1e-3, atol=1e-4)
    for i in range(COUNT):
        rows = nothing.copy()
        rows[i, 1] = True
        changed, other = program(rows)
        for mine in (0, 2):
            np.testing.assert_array_equal(changed[mine], logits[mine], err_msg=str(i))
            stream = "blocks.*.resid_post"
            np.testing.assert_array_equal(other[stream][:, mine], found[stream][:, mine])
        # The last one is seen by gradients alone.
        assert (np.abs(changed[1] - logits[1]).max() > 1e-4) == (i < COUNT - 1), i


def test_another_leaf_is_no_other_program(llama, tokens):
    rows = np.ones((COUNT, 3), bool)
    edits = _every(rows)
    expected, _ = run(llama, tokens, edits=edits)
    before, leaves = traces("run"), jax.tree.leaves(edits)
    structure, different = jax.tree.structure(edits), 0
    for i, leaf in enumerate(leaves):
        others = [*leaves]
        others[i] = _other(leaf)
        found, _ = run(llama, tokens, edits=structure.unflatten(others))
        different += not np.array_equal(found, expected, equal_nan=True)
    assert traces("run") == before
    assert different > 0.7 * len(leaves)
    # On a device or on the host: the same program.
    run(llama, tokens, edits=jax.device_put(edits))
    assert traces("run") <= before + 1


def _other(leaf):
    if isinstance(leaf, float):
        return leaf * 1.5 + 0.5
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(9)
    if leaf.dtype == bool:
        return ~leaf
    return np.maximum(leaf - 1, 0) if np.issubdtype(leaf.dtype, np.integer) else leaf * 2 + 1


def test_a_layer_by_name_is_that_layer_of_all(llama, tokens, go):
    for part in ("resid_pre", "attn.z"):
        for layer in (0, 2):
            named = edit(f"blocks.{layer}.{part}", Scale(0.5), positions=[1, 2])
            chosen = edit(f"blocks.*.{part}", Scale(0.5), positions=[1, 2], layers=layer - N)
            one, two = (go(llama, tokens, edits=(each,))[0] for each in (named, chosen))
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
            assert np.abs(one - go(llama, tokens)[0]).max() > 1e-3
    all_layers = edit("blocks.*.mlp_out", Set(0.0))
    each = tuple(edit(f"blocks.{i}.mlp_out", Set(0.0)) for i in range(N))
    one, two = go(llama, tokens, edits=(all_layers,))[0], go(llama, tokens, edits=each)[0]
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_edits_of_a_site_are_done_in_order(llama, tokens, go):
    site = "blocks.1.resid_post"
    one, two = edit(site, Set(1.0)), edit("blocks.*.resid_post", Add(2.0), layers=1)
    for edits, expected in (((one, two), 3.0), ((two, one), 1.0), ((one, two, one), 1.0)):
        found = go(llama, tokens, (site,), edits, logits=False)[1][site]
        np.testing.assert_array_equal(found, np.full_like(found, expected))


def test_a_skipped_block_is_not_computed(lm, tokens, go):
    """As in the model without the block; and whatever the block's weights are."""
    spec = dataclasses.replace(
        lm.spec, n_layers=2, windows=lm.spec.windows[:1] + lm.spec.windows[2:]
    )
    without = jax.tree.map(lambda leaf: leaf[np.array([0, 2])], lm.params["blocks"])
    shorter = LM(params={**lm.params, "blocks": without}, graphdef=abstract(spec)[0], spec=spec)
    expected = go(shorter, tokens)[0]
    nan = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), lm.params["blocks"])
    broken = dataclasses.replace(lm, params={**lm.params, "blocks": nan})
    found = go(broken, tokens, edits=(edit("blocks.1", Skip()),))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("site", ["blocks.1.mlp_out", "blocks.*.resid_post"])
def test_a_skipped_block_has_no_values(llama, tokens, site):
    skip = edit("blocks.1", Skip())
    with pytest.raises(JaxdiffError, match="a block that is skipped has no values"):
        run(llama, tokens, (site,), (skip,))
    if "*" not in site:
        with pytest.raises(JaxdiffError, match="no values"):
            run(llama, tokens, edits=(skip, edit(site, Set(0.0))))
    run(llama, tokens, ("blocks.2.resid_pre",), (skip, edit("blocks.*.mlp_out", Set(0.0))))


def _cost(lm, tokens, *edits):
    program = jax.jit(lambda lm: run(lm, tokens, edits=edits)[0]).lower(lm).compile()
    names = jax.tree_util.tree_flatten_with_path(lm)[0]
    kept = {jax.tree_util.keystr(names[i][0]) for i in program._executable._kept_var_idx}
    return program.cost_analysis()["flops"], kept


def test_a_given_residual_is_where_the_model_starts(llama, tokens, go):
    """What only the replaced value needs is not computed, and not even an argument."""
    site = "blocks.2.resid_pre"
    clean, found = go(llama, tokens, (site,))
    start = edit(site, Set(found[site]))
    blocks = jax.tree.map(lambda leaf: leaf.at[:2].set(jnp.nan), llama.params["blocks"])
    params = {**llama.params, "blocks": blocks, "embedding": llama.params["embedding"] * jnp.nan}
    broken = dataclasses.replace(llama, params=params)
    np.testing.assert_allclose(go(broken, tokens, edits=(start,))[0], clean, rtol=1e-5, atol=1e-6)
    apart = unstack(llama)
    (whole, every), (late, kept) = _cost(apart, tokens), _cost(apart, tokens, start)
    assert late < 0.5 * whole
    assert every - kept >= {
        name for name in every if "['blocks'][0]" in name or "['embedding']" in name
    }
    assert not any("['blocks'][1]" in name for name in kept)
    assert _cost(apart, tokens, edit("blocks.1", Skip()))[0] < 0.75 * whole


def _stationary():
    rng = np.random.default_rng(6)
    return (
        edit("blocks.*.resid_mid", Add(rng.normal(size=D)), layers=[0, 2], positions=[1, -1]),
        edit("blocks.*.attn.z", Scale(0.5), heads=0, layers=1),
        edit("blocks.*.mlp_out", PerLayer(Add(rng.normal(size=(N, D)))), rows=[0, 2]),
        edit("blocks.*.resid_pre", Scale(0.9), view=Subspace(rng.normal(size=(D, 2)))),
    )


@pytest.mark.parametrize(
    ("name", "edits"),
    [("llama", ()), *((name, _stationary()) for name in ("llama", "gemma2", "experts"))],
    ids=["plain", "llama", "gemma2", "experts"],
)
def test_stacked_apart_and_bounded_loops_agree(model, tokens, go, name, edits):
    """Within 1e-5, gradients within 1e-4 of the largest."""
    lm, t = model(name), tokens.shape[1]
    stacked, _ = go(lm, tokens, edits=edits)
    apart, _ = go(unstack(lm), tokens, edits=edits)

    def bounded(lm, low, high):
        world = world_of(lm, tokens, (), checked(lm, (), edits, tokens).edits)
        visitor = Visitor((world,), ())
        x = embed(visitor, 0, jnp.asarray(tokens))
        (x,) = between_layers((world,), (x,), 0, low, length=t)
        (x,) = between_layers((world,), (x,), low, high, length=t)
        return unembed(visitor, 0, x, True)

    np.testing.assert_allclose(apart, stacked, rtol=1e-5, atol=1e-5)
    for low in (0, 2):
        found = jax.jit(bounded, compiler_options=QUICK)(lm, low, N)
        np.testing.assert_allclose(found, stacked, rtol=1e-5, atol=1e-5)

    def loss(edits, lm):
        return jnp.mean(jnp.square(run(lm, tokens, edits=edits)[0]))

    def bounded_loss(edits, lm):
        return jnp.mean(jnp.square(bounded(lm, jnp.int32(2), jnp.int32(N))))

    def gradient(loss, lm):
        by_lm = jax.grad(loss, argnums=1, allow_int=True)
        return jax.jit(by_lm, compiler_options=QUICK)(edits, lm).params

    one, two = gradient(loss, lm), gradient(loss, unstack(lm))
    one = unstack(dataclasses.replace(lm, params=one)).params
    three = unstack(dataclasses.replace(lm, params=gradient(bounded_loss, lm))).params
    for a, b, c in zip(*map(jax.tree.leaves, (one, two, three)), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4 * max(np.abs(a).max(), 1e-2))
        np.testing.assert_allclose(c, a, atol=1e-4 * max(np.abs(a).max(), 1e-2))


def test_leaves_may_be_mapped(llama, tokens):
    """Positions, layers, strengths and vectors at once, as in a loop in Python."""
    rng = np.random.default_rng(8)
    cells = {
        "position": np.array([4, 2, 0, -1, 1]),
        "layer": np.array([2, 0, 1, -1, 0]),
        "strength": np.array([1.0, -0.5, 2.0, 0.3, 0.0], np.float32),
        "vector": rng.normal(size=(5, D)).astype(np.float32),
    }

    def cell(own):
        change = edit(
            "blocks.*.resid_post",
            Add(own["vector"], own["strength"]),
            layers=own["layer"],
            positions=own["position"],
        )
        return run(llama, tokens, edits=(change,), logits="last")[0]

    mapped = jax.jit(jax.vmap(cell), compiler_options=QUICK)(cells)
    one = jax.jit(cell, compiler_options=QUICK)
    looped = np.stack([one(jax.tree.map(lambda leaf, i=i: leaf[i], cells)) for i in range(5)])
    np.testing.assert_allclose(mapped, looped, rtol=1e-4, atol=1e-5)
    assert len({row.tobytes() for row in looped}) == 5


def test_eight_devices_agree_with_one(model, tokens, go):
    lm, tokens = model("llama"), np.concatenate([tokens] * 2)[:4]
    edits = (*_stationary(), edit("blocks.1.resid_post", FromRow([1, 0, 3, 2]), positions=2))
    expected, kept = go(lm, tokens, ("blocks.*.attn.z",), edits)
    mesh = make_mesh(data=2, latent=4)
    params = jax.tree.map(jax.device_put, dict(lm.params), shardings(dict(lm.params), mesh))
    split = dataclasses.replace(lm, params=params)
    there = jax.device_put(tokens, sharding(mesh, "data"))
    found, taps = go(split, there, ("blocks.*.attn.z",), edits)
    assert len(found.sharding.device_set) == 8
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        taps["blocks.*.attn.z"], kept["blocks.*.attn.z"], rtol=1e-5, atol=1e-5
    )


def test_no_edits_are_no_argument_at_all(llama, tokens):
    def text(f):
        f.__name__ = "program"
        return jax.jit(f).lower(llama, tokens).as_text()

    plain = text(lambda lm, t: run(lm, t))
    assert text(lambda lm, t: run(lm, t, (), ())) == plain
    assert text(lambda lm, t: run(lm, t, taps=[], edits=[])) == plain
    assert text(lambda lm, t: run(lm, t, edits=(edit("embed", Scale(2.0)),))) != plain


def test_the_fused_attention_hides_nothing_silently(model, tokens, go, caplog):
    lm = model("llama")
    beside = (edit("blocks.*.attn.z", Scale(0.5), heads=1), edit("blocks.1.attn.q", Add(1.0)))
    inside = (edit("blocks.1.attn.pattern", Scale(0.5)), *beside)
    for edits, hidden in (((), False), (beside, False), (inside, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "jaxdiff.models"):
            found, _ = go(lm, tokens, edits=edits, attention="fused")
        np.testing.assert_allclose(found, go(lm, tokens, edits=edits)[0], rtol=1e-4, atol=1e-5)
        assert ("blocks.1.attn.pattern" in caplog.text) == hidden
    with pytest.raises(JaxdiffError, match="no soft cap, which gemma2 needs"):
        run(model("gemma2"), tokens, attention="fused")
    with pytest.raises(JaxdiffError, match="attention='flash'"):
        checked(lm, (), (), tokens, "flash")


def test_half_precision_stays(model, tokens):
    lm = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model("llama"))
    logits, _ = shapes(lm, tokens.shape, edits=_every(np.ones((COUNT, 3), bool)))
    assert logits.dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_with_scales_and_patterns_of_another_run_attention_is_linear(model, tokens, name):
    """Norms and softmax frozen and the MLPs off, the last stream is affine in the first."""
    lm = model(name)
    norms = ["attn_norm", "attn_post_norm"] if lm.spec.post_norms else ["attn_norm"]
    frozen = (*(f"blocks.*.{norm}.scale" for norm in norms), "blocks.*.attn.pattern")
    _, kept = run(lm, tokens, frozen, logits=False)
    fixed = [edit(site, PerLayer(Set(kept[site]))) for site in frozen]
    off, end = edit("blocks.*.mlp_out", Set(0.0)), f"blocks.{N - 1}.resid_post"

    def last(stream, edits):
        edits = (edit("blocks.0.resid_pre", Set(stream)), *edits, off)
        return run(lm, tokens, (end,), edits, logits=False)[1][end]

    rng = np.random.default_rng(8)
    a, b = (rng.normal(size=(*tokens.shape, D)).astype(np.float32) for _ in range(2))
    for edits, linear in ((fixed, True), (fixed[:-1], False), (fixed[1:], False)):
        zero = last(0 * a, edits)
        sums = last(a, edits) + last(b, edits) - zero
        error = np.abs(last(a + b, edits) - sums).max() / np.abs(sums).max()
        assert (error < 1e-5) == linear, (error, len(edits))
