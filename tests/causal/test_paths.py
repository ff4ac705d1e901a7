"""Edges against sums over all readers and against one run an edge."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.causal import attribute_edges, patch_paths
from jaxdiff.edits import Add, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import run

FIELDS = ("attn", "mlp", "final")


def metric(logits):
    return logits[:, 3] - logits[:, 5]


def _written(lm, tokens, names):
    return run(lm, tokens, names, logits=False)[1]


@pytest.mark.parametrize("lm", ["neox"], indirect=True)
def test_an_edge_changes_what_one_reader_reads(lm, clean, corrupt):
    edges = patch_paths(lm, clean, corrupt, metric)
    before = metric(run(lm, corrupt, logits="last")[0])
    there, here = (_written(lm, tokens, edges.senders) for tokens in (clean, corrupt))
    for u, name in enumerate(edges.senders):
        change = there[name] - here[name]
        for v in (1, 3):
            for kind, scores in (("attn_in", edges.attn), ("mlp_in", edges.mlp)):
                at = f"blocks.{v}.{kind}"
                after = metric(run(lm, corrupt, (), (edit(at, Add(change)),), logits="last")[0])
                first = 1 + 2 * v + (kind == "mlp_in" and not lm.spec.parallel)
                expected = after - before if u < first else jnp.zeros(2)
                np.testing.assert_allclose(
                    scores[u, v], expected, atol=1e-5, err_msg=f"{name} to {at}"
                )


@pytest.mark.parametrize("lm", ["llama", "gemma"], indirect=True)
def test_all_edges_of_a_sender_are_the_sender(lm, clean, corrupt):
    """The derivative by patching a sender for all its readers is the sum over its edges."""
    edges = attribute_edges(lm, clean, corrupt, metric)
    there, here = (_written(lm, tokens, edges.senders) for tokens in (clean, corrupt))
    for u in (0, 1, 4, len(edges.senders) - 1):
        name = edges.senders[u]
        change = there[name] - here[name]

        def patched(alpha, name=name, change=change):
            edits = (edit(name, Add(change, alpha)),)
            return metric(run(lm, corrupt, (), edits, logits="last")[0])

        whole = jax.jvp(patched, (jnp.float32(0),), (jnp.float32(1),))[1]
        total = edges.attn[u].sum(0) + edges.mlp[u].sum(0) + edges.final[u]
        np.testing.assert_allclose(total, whole, rtol=1e-3, atol=1e-5, err_msg=name)


def test_estimates_are_exact_for_small_changes(llama, clean):
    """Two tokens with almost the same embedding make texts that hardly differ."""
    nudge = 1e-3 * np.random.default_rng(0).normal(size=16).astype(np.float32)
    embedding = llama.params["embedding"].at[23].set(llama.params["embedding"][5] + nudge)
    lm = dataclasses.replace(llama, params={**llama.params, "embedding": embedding})
    here, there = clean.copy(), clean.copy()
    here[:, 2], there[:, 2] = 5, 23
    exact = patch_paths(lm, there, here, metric)
    estimate = attribute_edges(lm, there, here, metric)
    for field in FIELDS:
        a, b = (np.ravel(getattr(e, field)) for e in (exact, estimate))
        assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(a), field
        assert np.abs(a).max() > 1e-6


def test_later_senders_have_no_edge_to_earlier_readers(llama, clean, corrupt):
    for edges in (attribute_edges(llama, clean, corrupt, metric),):
        later = np.arange(9)[:, None] >= 1 + 2 * np.arange(4)[None, :]
        assert np.abs(np.asarray(edges.attn)[later]).max() == 0
        assert (np.abs(np.asarray(edges.attn)[~later]).max(-1) > 0).all()
    assert edges.senders[:3] == ("blocks.0.resid_pre", "blocks.0.attn_out", "blocks.0.mlp_out")


def test_bad_input(llama, clean, corrupt):
    for f in (attribute_edges, patch_paths):
        with pytest.raises(JaxdiffError, match="pad them"):
            f(llama, clean[:, :3], corrupt, metric)


@pytest.mark.parametrize("score", [attribute_edges, patch_paths])
def test_padding_changes_no_edge(llama, clean, corrupt, score):
    sequences = np.pad(np.zeros(clean.shape, np.int32), ((0, 0), (0, 2)), constant_values=-1)
    padded = (np.pad(tokens, ((0, 0), (0, 2)), constant_values=9) for tokens in (clean, corrupt))
    found = score(llama, *padded, metric, sequences=sequences)
    expected = score(llama, clean, corrupt, metric)
    for field in FIELDS:
        np.testing.assert_allclose(
            getattr(found, field), getattr(expected, field), atol=1e-5, err_msg=field
        )
