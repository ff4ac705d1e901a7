"""Edits that a model carries, in every function that runs one: the same as edits of the call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import causal, readouts
from jaxdiff.edits import Add, Scale, Set, Subspace, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import run, with_edits

OWN = (
    edit("blocks.1.resid_post", Add(np.linspace(-2, 2, 16, dtype=np.float32)), positions=[1, -1]),
    edit("blocks.*.attn.z", Scale(0.2), heads=1),
)
RNG = np.random.default_rng(0)
TOKENS, OTHER = (RNG.integers(0, 26, (2, 6)).astype(np.int32) for _ in range(2))
METRIC = readouts.LogitDifference(right=3, wrong=5)
LAYERS = {"layers": np.arange(3)}

FUNCTIONS = {
    "sweep": lambda lm, **more: causal.sweep(
        lm, TOKENS, edit("blocks.*.mlp_out", Scale(0.0)), METRIC, LAYERS, **more
    ),
    "attribute": lambda lm, **more: causal.attribute(lm, TOKENS, OTHER, METRIC, **more),
    "logit_lens": lambda lm, **more: readouts.logit_lens(lm, TOKENS, k=2, kl=True, **more),
    "decompose": lambda lm, **more: readouts.decompose(lm, TOKENS, heads=True, **more).values,
    "direct_logit_attribution": lambda lm, **more: (
        readouts.direct_logit_attribution(lm, TOKENS, 3, 5, **more).values
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_carried_is_given(some, name):
    go = FUNCTIONS[name]
    found, expected = go(with_edits(some, OWN)), go(some, edits=OWN)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found, expected)
    # Sums over the first axis: with edits, the parts of the stream are one more.
    plain, found = (jax.tree.leaves(each) for each in (go(some), found))
    moved = [np.abs(np.sum(a, 0) - np.sum(b, 0)).max() for a, b in zip(plain, found, strict=True)]
    assert max(moved) > 1e-3


def test_parts_add_up_under_carried_edits(some):
    carrying = with_edits(some, OWN)
    parts = readouts.decompose(carrying, TOKENS)
    end = f"blocks.{some.spec.n_layers - 1}.resid_post"
    np.testing.assert_allclose(parts.total, run(carrying, TOKENS, (end,))[1][end], atol=1e-4)
    assert parts.names[-1] == "edits" and np.abs(parts["edits"]).max() > 0.1


def test_training_runs_the_edited_model(some):
    batches = [{"tokens": TOKENS, "target": OTHER[:, 0]}]

    def loss(logits, batch):
        return jnp.mean(jnp.square(logits[:, jnp.asarray(batch["target"])]))

    start = (edit("blocks.2.resid_post", Add(jnp.zeros(16))),)
    options = dict(optimizer=optax.sgd(0.0), steps=1, logits="last")
    kept, losses = causal.train_edits(with_edits(some, OWN), start, batches, loss, **options)
    _, expected = causal.train_edits(some, (*OWN, *start), batches, loss, **options)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert [own.site for own in kept] == ["blocks.2.resid_post"]


def test_what_reads_with_the_models_own_head_refuses_edits_of_it(some):
    head = (edit("final_norm", Scale(0.1)),)
    carrying = with_edits(some, head)
    batches = [{"tokens": TOKENS}]
    for go in (
        lambda: readouts.logit_lens(some, TOKENS, edits=head),
        lambda: readouts.logit_lens(carrying, TOKENS),
        lambda: readouts.decompose(carrying, TOKENS),
        lambda: readouts.direct_logit_attribution(carrying, TOKENS, 3),
        lambda: readouts.train_lens(carrying, batches, optimizer=optax.adam(1e-3), steps=1),
    ):
        with pytest.raises(JaxdiffError, match="an edit of final_norm changes the model's logits"):
            go()


@pytest.mark.parametrize("score", [causal.attribute_edges, causal.patch_paths])
@pytest.mark.parametrize("site", ["blocks.2.resid_post", "blocks.*.attn_in", "logits"])
def test_edges_refuse_edits_between_sender_and_reader(some, score, site):
    with pytest.raises(JaxdiffError, match="readers do not read what senders write"):
        score(with_edits(some, (edit(site, Scale(0.5)),)), TOKENS, OTHER, METRIC)


@pytest.mark.parametrize(
    "own",
    [
        edit("blocks.1.mlp_out", Scale(0.0), rows=1),
        edit("blocks.1.mlp_out", Scale(0.0), positions=[[1], [2]]),
    ],
)
def test_where_rows_are_cut_anew_edits_of_rows_are_refused(some, own):
    carrying = with_edits(some, (own,))
    with pytest.raises(JaxdiffError, match="differs between rows"):
        readouts.jacobian_lens(carrying, [{"tokens": TOKENS}], skip=0)
    with pytest.raises(JaxdiffError, match="differs between rows"):
        readouts.patchscope_generate(some, TOKENS, OTHER, 1, target=carrying)


def test_das_keeps_them_in_its_random_model(some):
    examples = causal.Interchanges(TOKENS, OTHER, OTHER[:, 0])
    carrying = with_edits(some, (edit("blocks.0.mlp_out", Set(0.0)),))
    found = causal.das(
        carrying, "blocks.1.resid_post", examples, examples, size=2, key=jax.random.key(0), steps=1
    )
    assert isinstance(found.view, Subspace)


def test_verify_looks_at_the_model_without_them(some, monkeypatch):
    few = {"embed": (), **{f"blocks.{i}.resid_post": () for i in range(some.spec.n_layers)}}
    monkeypatch.setattr("jaxdiff.causal._verify.sites", lambda lm: few)
    dead = with_edits(some, (edit("blocks.1.resid_post", Set(0.0)),))
    assert min(causal.verify(dead, TOKENS).values()) > 0
