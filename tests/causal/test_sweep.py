"""Sweeps against one forward pass a cell."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.causal import sweep
from jaxdiff.edits import Add, PerLayer, Scale, Set, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import run, traces, unstack, with_edits
from jaxdiff.readouts import LogitDifference

SITE = "blocks.*.resid_post"


def metric(logits):
    return logits[:, 3] - logits[:, 5]


@pytest.fixture(scope="module")
def source(llama, clean):
    return run(llama, clean, (SITE,), logits=False)[1][SITE]


def _one(lm, tokens, *edits, **keywords):
    return metric(run(lm, tokens, (), edits, logits="last", **keywords)[0])


def test_layers_by_positions_equal_one_pass_a_cell(lm, clean, corrupt):
    source = run(lm, clean, (SITE,), logits=False)[1][SITE]
    over = {"layers": np.arange(4), "positions": np.arange(7)}
    scores = sweep(lm, corrupt, edit(SITE, PerLayer(Set(source))), metric, over)
    assert scores.shape == (4, 7, 2)
    for i, p in itertools.product(range(4), range(7)):
        here = edit(f"blocks.{i}.resid_post", Set(source[i]), positions=np.array(p))
        np.testing.assert_allclose(
            scores[i, p], _one(lm, corrupt, here), atol=1e-5, err_msg=f"{i} {p}"
        )
    assert np.std(scores) > 1e-3


def test_axes_come_in_the_order_asked_for_and_chunks_do_not_matter(llama, corrupt, source):
    asked = edit(SITE, PerLayer(Set(source)))
    a = sweep(llama, corrupt, asked, metric, {"layers": [0, 2], "positions": np.arange(7)})
    for memory in (1, 60_000):
        b = sweep(
            llama,
            corrupt,
            asked,
            metric,
            {"positions": np.arange(7), "layers": [0, 2]},
            memory=memory,
        )
        np.testing.assert_allclose(np.swapaxes(b, 0, 1), a, atol=1e-5)


def test_other_values_are_the_same_program(llama, corrupt, source):
    def go(layers, positions, source):
        over = {"layers": np.array(layers), "positions": jnp.array(positions)}
        return sweep(llama, corrupt, edit(SITE, PerLayer(Set(source))), metric, over)

    first = go([0, 1], [2, 3, 4], source)
    before = traces("sweep")
    assert not np.allclose(go([3, 2], [0, 6, -1], -source), first)
    assert traces("sweep") == before


def test_heads(llama, corrupt):
    over = {"heads": np.arange(4), "layers": np.arange(4)}
    scores = sweep(llama, corrupt, edit("blocks.*.attn.z", Set(0.0)), metric, over)
    for h, i in itertools.product(range(4), range(4)):
        one = _one(llama, corrupt, edit(f"blocks.{i}.attn.z", Set(0.0), heads=np.array(h)))
        np.testing.assert_allclose(scores[h, i], one, atol=1e-5)


def test_strengths_and_vectors_at_one_site(llama, corrupt):
    vectors = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    strengths = np.array([0.5, -2.0], np.float32)
    asked = edit("blocks.2.attn_out", Add(vectors[0]), positions=-1)
    over = {"op.vector": vectors, "op.strength": strengths}
    scores = sweep(llama, corrupt, asked, metric, over)
    for (v, vector), (s, strength) in itertools.product(enumerate(vectors), enumerate(strengths)):
        one = edit("blocks.2.attn_out", Add(vector, strength), positions=-1)
        np.testing.assert_allclose(scores[v, s], _one(llama, corrupt, one), atol=1e-5)


@pytest.mark.parametrize("site", ["embed", SITE, "final_norm", "blocks.*.mlp.post"])
def test_sites_outside_of_one_layer(llama, corrupt, site):
    scores = sweep(llama, corrupt, edit(site, Scale(1.0)), metric, {"op.by": [0.5, 1.0]})
    np.testing.assert_allclose(scores[1], _one(llama, corrupt), atol=1e-5)
    np.testing.assert_allclose(
        scores[0], _one(llama, corrupt, edit(site, Scale(np.float32(0.5)))), atol=1e-5
    )


def test_other_edits_apply_to_every_cell_and_to_their_own_rows(llama, corrupt):
    others = (
        edit("blocks.1.mlp_out", Set(0.0), rows=1),
        edit("blocks.*.attn.z", Scale(0.5), heads=2),
        edit("embed", Scale(2.0), positions=0),
    )
    asked = edit(SITE, Scale(0.0))
    over = {"layers": np.arange(4), "positions": [0, 5]}
    scores = sweep(llama, corrupt, asked, metric, over, edits=others)
    for i, (p, position) in itertools.product(range(4), enumerate([0, 5])):
        here = edit(f"blocks.{i}.resid_post", Scale(0.0), positions=position)
        np.testing.assert_allclose(
            scores[i, p], _one(llama, corrupt, *others, here), atol=1e-5, err_msg=f"{i} {p}"
        )


def test_padded_rows_are_measured_at_their_last_token(llama, corrupt):
    sequences = np.array([[0] * 7, [0] * 4 + [-1] * 3], np.int32)
    asked = edit(SITE, Set(0.0), positions=-1)
    scores = sweep(llama, corrupt, asked, metric, {"layers": np.arange(4)}, sequences=sequences)
    short = sweep(
        llama, corrupt[1:, :4], edit(SITE, Set(0.0), positions=3), metric, {"layers": np.arange(4)}
    )
    np.testing.assert_allclose(scores[:, 1], short[:, 0], atol=1e-5)


def test_metrics_with_leaves_and_several_results(llama, corrupt):
    asked = edit("blocks.*.attn_out", Set(0.0))
    over = {"layers": np.arange(4)}
    scores = sweep(llama, corrupt, asked, LogitDifference(3, 5), over)
    before = traces("sweep")
    other = sweep(llama, corrupt, asked, LogitDifference(1, 2), over)
    assert traces("sweep") == before and not np.allclose(scores, other)
    both = sweep(llama, corrupt, asked, lambda y: {"first": y[:, 0], "all": y}, over)
    assert both["all"].shape == (4, 2, 24)
    np.testing.assert_array_equal(both["first"], both["all"][..., 0])


def test_weights_apart_give_the_same(llama, corrupt, source):
    asked, over = edit(SITE, PerLayer(Set(source))), {"layers": np.arange(4), "positions": [1, 4]}
    np.testing.assert_allclose(
        sweep(unstack(llama), corrupt, asked, metric, over),
        sweep(llama, corrupt, asked, metric, over),
        atol=1e-5,
    )


@pytest.mark.parametrize("lm", ["gemma", "gpt2", "experts"], indirect=True)
@pytest.mark.parametrize("site", [SITE, "blocks.*.attn_out"])
def test_tokens_before_a_position_are_spared(lm, corrupt, site):
    """Positions of the host are grouped by where they start; traced ones all run all tokens."""
    asked, places = edit(site, Scale(-1.0)), [6, 0, -3, 3, 5]
    layers = np.array([3, 0, 2])
    grouped = sweep(lm, corrupt, asked, metric, {"positions": places, "layers": layers})
    traced = sweep(lm, corrupt, asked, metric, {"positions": jnp.array(places), "layers": layers})
    np.testing.assert_allclose(grouped, traced, atol=1e-5)
    shapes = [
        str(jax.make_jaxpr(lambda t, p=p: _positions(lm, t, asked, p))(jnp.asarray(corrupt)))
        for p in (np.array(places), jnp.array(places))
    ]
    # The 3 cells of positions 4 to 6 run 3 of 7 tokens, each of 2 rows.
    assert ["[6,3,16]" in text for text in shapes] == [True, False]


def _positions(lm, tokens, asked, places):
    return sweep(lm, tokens, asked, metric, {"positions": places, "layers": np.arange(4)})


@pytest.mark.parametrize("where", ["blocks.*.resid_pre", SITE])
def test_edits_of_the_same_stream_are_applied_once(llama, corrupt, where):
    others = (edit(where, Add(np.ones(16, np.float32))),)
    for site in ("blocks.*.resid_pre", SITE):
        scores = sweep(
            llama, corrupt, edit(site, Scale(0.5)), metric, {"layers": [0, 2]}, edits=others
        )
        for i, layer in enumerate([0, 2]):
            here = edit(site.replace("*", str(layer)), Scale(0.5))
            np.testing.assert_allclose(
                scores[i], _one(llama, corrupt, *others, here), atol=1e-5, err_msg=site
            )


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"layers": [4]}, "outside of the model"),
        ({"positions": [7]}, "outside of the batch: 7"),
        ({"layers": [-5]}, "outside of the model: -5"),
        ({"layers": jnp.array([3, 9])}, "outside of the model: 9"),
        ({"op.strength": [1.0]}, "no leaf called op.strength"),
        ({"layers": []}, "no axis"),
        ({"positions": 3}, "no axis"),
        ({"positions": np.array([False, True])}, "is no axis"),
        ({"layers": [1.0]}, "layers are numbers or masks, not float64"),
    ],
)
def test_bad_axes_are_refused(llama, corrupt, over, message):
    with pytest.raises(JaxdiffError, match=message):
        sweep(llama, corrupt, edit(SITE, Set(0.0)), metric, over)


def test_layers_of_one_site_are_refused(llama, corrupt):
    with pytest.raises(JaxdiffError, match="at a `\\*` site only"):
        sweep(llama, corrupt, edit("blocks.1.mlp_out", Set(0.0)), metric, {"layers": [1]})


def test_heads_that_do_not_exist_are_refused(llama, corrupt):
    """They would read as heads that do nothing."""
    asked, over = edit("blocks.*.attn.z", Set(0.0)), {"heads": np.arange(8), "layers": [0]}
    with pytest.raises(JaxdiffError, match="heads are outside of the model: 4, 5"):
        sweep(llama, corrupt, asked, metric, over)


def test_layers_count_from_the_end(llama, corrupt):
    asked = edit(SITE, Scale(0.5), positions=3)
    some = sweep(llama, corrupt, asked, metric, {"layers": [-1, 1]})
    np.testing.assert_array_equal(some, sweep(llama, corrupt, asked, metric, {"layers": [3, 1]}))


def test_gradients_through_the_bounded_loop(llama, corrupt):
    """By the vector that is added and by a strength, against a run a cell."""
    vector = np.linspace(-1, 1, 16, dtype=np.float32)
    layers, positions = np.array([0, 2]), np.array([1, 6])

    def swept(vector, strength):
        asked = edit("blocks.*.mlp_out", Add(vector, strength))
        over = {"layers": layers, "positions": positions}
        return jnp.sum(jnp.square(sweep(llama, corrupt, asked, metric, over)))

    def by_hand(vector, strength):
        return sum(
            jnp.sum(
                jnp.square(_one(llama, corrupt, edit(site, Add(vector, strength), positions=p)))
            )
            for site in (f"blocks.{i}.mlp_out" for i in layers)
            for p in positions
        )

    # Compiled as a whole: traced op by op, a gradient takes long.
    quick = {"xla_backend_optimization_level": 0}
    found, expected = (
        jax.jit(jax.grad(f, argnums=(0, 1)), compiler_options=quick)(vector, 0.7)
        for f in (swept, by_hand)
    )
    for a, b in zip(found, expected, strict=True):
        assert np.abs(b).max() > 1e-2
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_edits_of_the_model_are_edits_of_all_cells(llama, corrupt, source):
    own = (edit("blocks.1.mlp_out", Scale(0.3)), edit("blocks.*.attn_out", Scale(1.1), rows=1))
    asked, over = edit(SITE, PerLayer(Set(source))), {"layers": [0, 2], "positions": [1, 5]}
    carried = sweep(with_edits(llama, own), corrupt, asked, metric, over)
    np.testing.assert_array_equal(carried, sweep(llama, corrupt, asked, metric, over, edits=own))
    assert np.abs(carried - sweep(llama, corrupt, asked, metric, over)).max() > 1e-3


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Mine:
    site: str = "blocks.1.mlp_out"

    def __call__(self, value, at):
        return value


def test_an_edit_of_ones_own_class_is_refused(llama, corrupt):
    with pytest.raises(JaxdiffError, match="made by edits.edit, not _Mine"):
        carrying = with_edits(llama, (_Mine(),))
        sweep(carrying, corrupt, edit(SITE, Scale(0.5)), metric, {"layers": [0]})


@pytest.mark.parametrize(
    "more",
    [
        {"sequences": np.array([[0] * 7, [0] * 5 + [-1] * 2], np.int32)},
        {"positions": np.arange(2, 9, dtype=np.int32)[None].repeat(2, 0)},
        {"edits": (edit("blocks.*.attn_out", Scale(0.3), positions=-1),)},
    ],
    ids=["sequences", "positions", "edits"],
)
def test_positions_of_the_host_are_swept_in_texts_of_any_kind(llama, corrupt, source, more):
    places, layers = np.array([3, 6, 4]), np.array([0, 2])
    asked = edit(SITE, PerLayer(Set(source)))
    over = {"positions": places, "layers": layers}
    scores = sweep(llama, corrupt, asked, metric, over, **more)
    keywords = {name: value for name, value in more.items() if name != "edits"}
    for (i, place), (j, layer) in itertools.product(enumerate(places), enumerate(layers)):
        here = edit(SITE, PerLayer(Set(source)), positions=place, layers=layer)
        one = _one(llama, corrupt, *more.get("edits", ()), here, **keywords)
        np.testing.assert_allclose(scores[i, j], one, atol=1e-5)
