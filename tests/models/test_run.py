import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiff.edits import Last, Set, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import ModelConfig, Tap, init, run, sites, unstack
from jaxdiff.models._check import checked
from jaxdiff.models._lm import abstract
from jaxdiff.models._run import world_of
from jaxdiff.models.attention import Context, Layer
from jaxdiff.models.rope import angles

# Compiling is most of a test's time; the results are compared with tolerances anyway.
QUICK = {"xla_backend_optimization_level": 0}
go = jax.jit(run, static_argnames=("taps", "logits"), compiler_options=QUICK)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 24, (2, 9)).astype(np.int32)


def _plain(lm, tokens):
    """The same model without any tap: embed, scan, norm, unembed."""
    model = nnx.merge(lm.graphdef, lm.params)
    cos, sin = angles(lm.spec.rope, lm.spec.head_dim, jnp.arange(tokens.shape[1])[None])
    graphdef, stacked = nnx.split(model.blocks)
    t = tokens.shape[1]
    windows = jnp.asarray([w or t for w in lm.spec.windows]) if lm.spec.windows else None

    def layer(x, layer):
        params, window = layer
        context = Context(((cos, sin),), None, None)
        block = nnx.merge(graphdef, params)
        return block(x, context, Layer(window, None), lambda name, value: value)[0], None

    x, _ = jax.lax.scan(layer, model.embed(tokens), (stacked, windows))
    return model.unembed(model.final_norm(x))


def _program(f, *args):
    f.__name__ = "program"
    return jax.jit(f).lower(*args).as_text()


def test_without_taps_the_program_is_the_plain_model(lm, tokens):
    plain = _program(_plain, lm, tokens)
    assert "while" in plain
    assert _program(lambda lm, t: run(lm, t)[0], lm, tokens) == plain


def test_a_tap_changes_the_program(lm, tokens):
    tapped = _program(lambda lm, t: run(lm, t, ("blocks.1.attn_out",)), lm, tokens)
    assert tapped != _program(_plain, lm, tokens)


def test_taps_agree_at_all_cuts(lm, tokens):
    logits, everything = go(lm, tokens, tuple(sites(lm)))
    assert everything.keys() == sites(lm).keys()
    some = ("embed", "blocks.0.mlp_out", "blocks.1.resid_pre", "blocks.2.resid_post", "logits")
    for site, shape in sites(lm).items():
        sizes = {"B": 2, "T": 9, "S": 9}
        assert everything[site].shape == tuple(sizes.get(axis, axis) for axis in shape)
    for site in some:
        alone = go(lm, tokens, (site,), logits=False)
        assert alone[0] is None and list(alone[1]) == [site]
        np.testing.assert_allclose(alone[1][site], everything[site], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(everything["logits"], logits)
    np.testing.assert_allclose(go(lm, tokens)[0], logits, rtol=1e-5, atol=1e-5)


def test_the_stream_adds_up(lm, tokens):
    _, a = go(lm, tokens, tuple(sites(lm)))
    for i in range(4):
        block = {part: a[f"blocks.{i}.{part}"] for part in ("resid_pre", "resid_mid", "resid_post")}
        for start, branch, end in (
            ("resid_pre", "attn_out", "resid_mid"),
            ("resid_mid", "mlp_out", "resid_post"),
        ):
            total = block[start] + a[f"blocks.{i}.{branch}"]
            np.testing.assert_allclose(block[end], total, rtol=1e-5, atol=1e-6)


def test_taps_come_back_under_the_name_asked_for(llama, tokens):
    _, found = go(llama, tokens, ("model.layers.1", "blocks.1.hook_resid_post"), logits=False)
    np.testing.assert_array_equal(*found.values())
    with pytest.raises(JaxdiffError, match="no site 'blocks.9.resid_post'"):
        run(llama, tokens, ("blocks.9.resid_post",))


def test_work_after_the_last_tap_is_not_done(lm, tokens):
    """Parameters that the result does not depend on are dropped from the compiled program."""

    def used(site):
        f = jax.jit(lambda lm: run(lm, tokens, (site,), logits=False))
        flops = f.lower(lm).compile().cost_analysis().get("flops", 0)
        names = jax.tree_util.tree_flatten_with_path(lm)[0]
        kept = f.lower(lm).compile()._executable._kept_var_idx
        return flops, {jax.tree_util.keystr(names[i][0]) for i in kept}

    flops, kept = zip(
        *map(used, ("embed", "blocks.0.attn_out", "blocks.0.resid_post", "final_norm", "logits")),
        strict=True,
    )
    assert list(flops) == sorted(flops) and len(set(flops)) == len(flops)
    assert kept[0] == {".params['embedding']"}
    assert not any("mlp" in name for name in kept[1]) and any("mlp" in name for name in kept[2])
    assert not any("final" in name or "unembed" in name for name in kept[2])
    if not lm.spec.tied:
        assert kept[4] - kept[3] == {".params['unembedding']"}


def test_blocks_after_the_last_tap_are_not_run(lm, tokens):
    """NaN weights in later layers would show if they were multiplied in."""
    blocks = jax.tree.map(lambda x: x.at[2:].set(jnp.nan), lm.params["blocks"])
    broken = dataclasses.replace(lm, params={**lm.params, "blocks": blocks})

    def steps(site):
        jaxpr = jax.make_jaxpr(lambda lm: run(lm, tokens, (site,), logits=False))(lm)
        return [e.params["length"] for e in jaxpr.eqns if e.primitive.name == "scan"]

    assert np.isfinite(
        go(broken, tokens, ("blocks.2.resid_pre",), logits=False)[1].popitem()[1]
    ).all()
    assert not np.isfinite(go(broken, tokens, ("blocks.2.resid_post",))[1].popitem()[1]).any()
    assert [steps(s) for s in ("embed", "blocks.1.resid_post", "blocks.2.resid_post")] == [
        [],
        [2],
        [3],
    ]
    assert steps("final_norm") == [4]


def _replaced(tokens, at):
    other = tokens.copy()
    other[:, at] = (tokens[:, at] + 1) % 24
    return other


def test_later_tokens_do_not_reach_earlier_ones(lm, tokens):
    changed = _replaced(tokens, 5)
    before, after = go(lm, tokens)[0], go(lm, changed)[0]
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before[:, 5:] - after[:, 5:]).max((0, 2)) > 1e-4).all()


def test_a_window_ends(gemma2, tokens):
    """With windows of 3 everywhere, 4 layers reach 8 tokens back and no further."""
    spec = dataclasses.replace(gemma2.spec, windows=(3,) * 4)
    local = dataclasses.replace(gemma2, spec=spec, graphdef=abstract(spec)[0])
    changed = _replaced(tokens, 0)
    site = "blocks.1.resid_post"
    difference = go(local, tokens, (site,))[1][site] - go(local, changed, (site,))[1][site]
    reached = jnp.abs(difference).max((0, 2)) > 0
    assert reached.tolist() == [True] * 5 + [False] * 4


def test_packed_documents_equal_separate_ones(lm):
    documents = np.random.default_rng(1).integers(0, 24, (3, 4)).astype(np.int32)
    packed, sequences = documents.reshape(1, 12), np.repeat([4, 9, -1], 4)[None].astype(np.int32)
    site = "blocks.3.attn_out"
    separate = go(lm, documents, (site,))
    for positions in (np.tile(np.arange(4, dtype=np.int32), 3)[None], None):
        logits, acts = go(lm, packed, (site,), sequences=sequences, positions=positions)
        for found, expected in ((logits, separate[0]), (acts[site], separate[1][site])):
            flat = np.reshape(expected, found.shape)
            np.testing.assert_allclose(found, flat, rtol=1e-4, atol=1e-5)
    assert np.abs(go(lm, packed, (site,))[0] - logits)[:, 4:].max() > 1e-2


def test_gradient_matches_finite_differences_with_and_without_taps(lm, tokens):
    def loss(params, taps=()):
        logits, _ = run(dataclasses.replace(lm, params=params), tokens, taps)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1))

    rng = np.random.default_rng(2)
    step = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), lm.params)
    gradient = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)
    plain = gradient(lm.params)[1]
    ends = [
        gradient(jax.tree.map(lambda p, s, e=e: p + np.float32(e) * s, lm.params, step))[0]
        for e in (5e-4, -5e-4)
    ]
    dot = sum(np.sum(g * s) for g, s in zip(*map(jax.tree.leaves, (plain, step)), strict=True))
    np.testing.assert_allclose(dot, (ends[0] - ends[1]) / 1e-3, rtol=2e-2)
    taps = ("blocks.1.mlp_out", "model.layers.2")
    cut = jax.jit(jax.grad(lambda p: loss(p, taps)), compiler_options=QUICK)(lm.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), plain, cut)


def test_equal_structure_is_not_traced_again(lm, tokens):
    traces = []

    @jax.jit
    def f(lm, tokens):
        traces.append(None)
        return run(lm, tokens, ("blocks.1.resid_post",))

    f(lm, tokens)
    f(jax.tree.map(np.negative, lm), tokens + 1)
    f(dataclasses.replace(lm, graphdef=abstract.__wrapped__(lm.spec)[0]), tokens)
    assert len(traces) == 1


def test_unknown_token_ids_give_nan_in_their_row(llama, tokens):
    tokens = tokens.copy()
    tokens[1, 8] = 24
    logits, _ = go(llama, tokens)
    assert np.isnan(logits[1, 8]).all() and np.isfinite(logits[0]).all()


def test_learned_positions_do_not_count_padding(tokens):
    spec = ModelConfig(
        vocab_size=24, d_model=16, n_layers=2, n_heads=4, d_mlp=24, rope=None, norm="layer"
    )
    lm = init(spec, key=jax.random.key(0))
    padded = np.pad(tokens, ((0, 0), (3, 0)))
    sequences = np.pad(np.zeros_like(tokens), ((0, 0), (3, 0)), constant_values=-1)
    logits = run(lm, padded, sequences=sequences)[0]
    np.testing.assert_allclose(logits[:, 3:], run(lm, tokens)[0], atol=1e-5)


def test_what_is_no_batch_of_tokens_is_refused(llama):
    """Under the tests' type checks of `run` only the function that it calls can be reached."""
    for bad in (np.zeros(3, np.int32), np.zeros((1, 3), np.float32)):
        with pytest.raises(JaxdiffError, match="tokens are an integer array"):
            checked(llama, (), (), bad)


def _tap(**fields):
    """A tap with fields that the tests' type checks would not let through."""
    tap = Tap("embed")
    for name, value in fields.items():
        object.__setattr__(tap, name, value)
    return tap


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (dict(sequences=np.zeros((2, 5), np.int32)), r"tokens \[2, 9\], not \[2, 5\]"),
        (dict(positions=np.zeros((3, 9), np.int32)), r"tokens \[2, 9\], not \[3, 9\]"),
        (dict(taps=(Tap("embed", reduce=Last),)), r"write Last\(...\)"),
        (dict(taps=(_tap(reduce=3),)), "reduce=3 is an object that is called"),
        (dict(taps=(_tap(view=Last()),)), "view=Last.* is an object that is called"),
        (dict(taps="embed"), "taps are a tuple"),
        (dict(edits=(edit("embed", Set("x")),)), "op.to is 'x', which is no number"),
    ],
)
def test_what_no_program_can_do_is_refused_before_tracing(llama, tokens, asked, message):
    # Under the tests' type checks of `run` only the functions that it calls can be reached.
    with pytest.raises(JaxdiffError, match=message):
        found = checked(llama, asked.get("taps", ()), asked.get("edits", ()), tokens)
        more = {name: asked[name] for name in ("sequences", "positions") if name in asked}
        world_of(llama, tokens, found.taps, found.edits, **more)


def test_functions_may_be_ops_and_reducers(llama, tokens):
    def halve(value, at):
        return 0.5 * value

    def peak(value, at):
        return jnp.max(value, axis=-1)

    tap = Tap("blocks.1.mlp_out", reduce=peak)
    _, acts = run(llama, tokens, (tap,), (edit("blocks.1.mlp_out", halve),))
    _, plain = run(llama, tokens, ("blocks.1.mlp_out",))
    np.testing.assert_allclose(
        acts["blocks.1.mlp_out"], 0.5 * plain["blocks.1.mlp_out"].max(-1), rtol=1e-6
    )


def test_the_error_of_an_op_is_kept(llama, tokens):
    def wrong(value, at):
        raise ValueError("no such thing")

    with pytest.raises(JaxdiffError, match="no such thing") as raised:
        run(llama, tokens, edits=(edit("embed", wrong),))
    assert isinstance(raised.value.__cause__, ValueError)
    with pytest.raises(JaxdiffError, match="does not fit the value of its site"):
        run(llama, tokens, edits=(edit("embed", lambda value, at: None),))


@pytest.mark.parametrize("apart", [False, True], ids=["stacked", "apart"])
def test_offloaded_values_are_in_the_hosts_memory(llama, tokens, apart):
    lm, site = unstack(llama) if apart else llama, "blocks.*.resid_post"
    here = run(lm, tokens, (site, "final_norm"))[1]
    taps = (Tap(site, offload=True), Tap("final_norm", reduce=Last(), offload=True))
    there = run(lm, tokens, taps)[1]
    assert {x.sharding.memory_kind for x in there.values()} == {"pinned_host"}
    assert {x.sharding.memory_kind for x in here.values()} == {"device"}
    np.testing.assert_allclose(there[site], here[site], rtol=1e-6)
    np.testing.assert_allclose(there["final_norm"], here["final_norm"][:, -1], rtol=1e-6)
