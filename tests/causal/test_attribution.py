"""Gates against the explicit formula, patching, and the completeness of integrated gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.causal import attribute
from jaxdiff.dictionaries import Dictionary, encode
from jaxdiff.edits import Add, Latents, PerLayer, Set, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import Tap, run, traces, unstack

# Compiling is most of a test's time, and what is not compiled as a whole takes longer still.
QUICK = {"xla_backend_optimization_level": 0}
SITES = ("blocks.*.resid_post", "blocks.*.attn.z", "blocks.2.mlp.post", "embed")


def metric(logits):
    return logits[:, 3] - logits[:, 5]


_quick = functools.partial(jax.jit, compiler_options=QUICK)


def _explicit(lm, clean, corrupt, site, jit=_quick):
    """(a_clean - a_corrupt) * gradient, with the gradient by zeros that are added."""
    there, here = (run(lm, t, (site,), logits=False)[1][site] for t in (clean, corrupt))

    def measured(zeros):
        op = PerLayer(Add(zeros)) if "*" in site else Add(zeros)
        return jnp.sum(metric(run(lm, corrupt, (), (edit(site, op),), logits="last")[0]))

    return (there - here) * jit(jax.grad(measured))(jnp.zeros_like(here))


@pytest.mark.parametrize(
    ("lm", "per"),
    [("llama", "position"), ("llama", "unit"), ("gemma", "position"), ("experts", "position")],
    indirect=["lm"],
)
def test_gates_equal_the_explicit_formula(lm, clean, corrupt, per):
    sites = [site for site in SITES if not (lm.spec.experts and "mlp" in site)]
    scores = attribute(lm, clean, corrupt, metric, sites, per=per)
    assert list(scores) == sites
    for site in sites:
        expected = _explicit(lm, clean, corrupt, site)
        axes = (3 if "*" in site else 2) if per == "position" else expected.ndim
        expected = expected.reshape(*expected.shape[:axes], -1).sum(-1)
        assert np.abs(expected).max() > 1e-4
        np.testing.assert_allclose(scores[site], expected, atol=1e-5, err_msg=site)


def test_heads_add_up_to_positions(llama, clean, corrupt):
    sites = ("blocks.*.attn.z", "blocks.1.attn.q")
    heads = attribute(llama, clean, corrupt, metric, sites, per="head")
    positions = attribute(llama, clean, corrupt, metric, sites)
    assert heads["blocks.*.attn.z"].shape == (4, 2, 7, 4)
    for site in sites:
        np.testing.assert_allclose(heads[site].sum(-1), positions[site], atol=1e-6)


def test_integrated_gradients_are_complete(llama, clean, corrupt):
    """With all gates of the embedding open, the run is the clean one."""
    difference = metric(run(llama, clean, logits="last")[0]) - metric(
        run(llama, corrupt, logits="last")[0]
    )
    errors = [
        np.abs(
            attribute(llama, clean, corrupt, metric, ("embed",), steps=n)["embed"].sum(-1)
            - difference
        ).max()
        for n in (2, 64)
    ]
    assert errors[1] < 0.02 * np.abs(difference).max() and errors[1] < errors[0]


def _dictionary(seed=0, latents=12):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(0, 0.5, shape).astype(np.float32))  # noqa: E731
    return Dictionary(
        W_enc=draw(1, 16, latents),
        b_enc=draw(latents),
        W_dec=draw(latents, 1, 16),
        b_dec=draw(1, 16),
        threshold=jnp.zeros(()),
        activation="relu",
        k=4.0,
        code_norm="none",
    )


def test_latents_of_a_dictionary(llama, clean, corrupt):
    """d metric / d latent times the latent's change; the same site's plain gradient gives both."""
    site, dictionary = "blocks.2.resid_post", _dictionary()
    tap = Tap(site, view=Latents(dictionary, normalization=None))
    scores = attribute(llama, clean, corrupt, metric, (tap,), per="unit")[site]
    there, here = (
        run(llama, t, (site,), logits=False)[1][site].reshape(-1, 1, 16) for t in (clean, corrupt)
    )
    change = encode(dictionary, there) - encode(dictionary, here)

    def measured(zeros):
        return jnp.sum(metric(run(llama, corrupt, (), (edit(site, Add(zeros)),), logits="last")[0]))

    gradient = jax.jit(jax.grad(measured), compiler_options=QUICK)
    gradient = gradient(jnp.zeros((2, 7, 16))).reshape(-1, 16)
    expected = change * (gradient @ dictionary.W_dec[:, 0].T)
    np.testing.assert_allclose(scores.reshape(-1, 12), expected, atol=1e-5)
    assert (np.abs(expected) > 1e-5).sum() > 20


def test_edits_apply_to_both_runs_and_rows_stay_apart(llama, clean, corrupt):
    off = (edit("blocks.3.attn_out", Set(0.0)),)
    scores = attribute(llama, clean, corrupt, metric, ("blocks.*.attn_out",), edits=off)
    assert np.abs(scores["blocks.*.attn_out"][3]).max() == 0
    assert np.abs(scores["blocks.*.attn_out"][1]).max() > 0
    both = attribute(llama, clean, corrupt, metric)["blocks.*.resid_post"]
    one = attribute(llama, clean[1:], corrupt[1:], metric)["blocks.*.resid_post"]
    np.testing.assert_allclose(both[:, 1:], one, atol=1e-6)


def test_layouts_and_rematerialisation_agree(llama, clean, corrupt):
    plain = attribute(llama, clean, corrupt, metric, SITES)
    for other in (
        attribute(unstack(llama), clean, corrupt, metric, SITES),
        attribute(llama, clean, corrupt, metric, SITES, remat=True),
    ):
        for site in SITES:
            np.testing.assert_allclose(other[site], plain[site], atol=1e-5, err_msg=site)


def test_other_tokens_are_the_same_program(llama, clean, corrupt):
    attribute(llama, clean, corrupt, metric)
    before = traces("attribute")
    attribute(llama, corrupt, clean, metric)
    assert traces("attribute") == before


def test_bad_input(llama, clean, corrupt):
    with pytest.raises(JaxdiffError, match="clean tokens are"):
        attribute(llama, clean[:, :5], corrupt, metric)
    with pytest.raises(JaxdiffError, match="no gate per head"):
        attribute(llama, clean, corrupt, metric, ("embed",), per="head")
    with pytest.raises(JaxdiffError, match="no gate per position"):
        attribute(llama, clean, corrupt, metric, ("blocks.1.attn.pattern",))
    with pytest.raises(JaxdiffError, match="steps=0"):
        attribute(llama, clean, corrupt, metric, steps=0)
    with pytest.raises(JaxdiffError, match="positions are outside"):
        attribute(llama, clean, corrupt, metric, edits=(edit("embed", Set(0.0), positions=99),))
    with pytest.raises(JaxdiffError, match="no site"):
        attribute(llama, clean, corrupt, metric, ("blocks.9.resid_post",))


def test_bfloat16(llama, clean, corrupt):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), llama)
    scores = attribute(half, clean, corrupt, metric)["blocks.*.resid_post"]
    exact = attribute(llama, clean, corrupt, metric)["blocks.*.resid_post"]
    assert scores.dtype == jnp.float32
    assert np.corrcoef(np.ravel(scores), np.ravel(exact))[0, 1] > 0.95


@pytest.mark.parametrize("steps", [1, 4])
def test_scores_have_gradients_with_respect_to_weights(llama, clean, corrupt, steps):
    """Those of the explicit formula; with several steps, of finite differences."""
    site, change = "blocks.*.resid_post", np.random.default_rng(4).normal(size=(24, 16))

    def moved(by):
        embedding = llama.params["embedding"] + by * change.astype(np.float32)
        return dataclasses.replace(llama, params={**llama.params, "embedding": embedding})

    def score(by):
        found = attribute(moved(by), clean, corrupt, metric, (site,), steps=steps)
        return jnp.sum(jnp.square(found[site]))

    def explicit(by):
        return jnp.sum(jnp.square(_explicit(moved(by), clean, corrupt, site, jax.jit).sum(-1)))

    found = jax.jit(jax.grad(score))(jnp.float32(0))
    if steps == 1:
        np.testing.assert_allclose(found, jax.jit(jax.grad(explicit))(jnp.float32(0)), rtol=1e-3)
    small = jnp.float32(3e-4)
    np.testing.assert_allclose(found, (score(small) - score(-small)) / (2 * small), rtol=0.05)


def test_gates_of_all_layers_add_their_whole_differences(llama, clean, corrupt):
    """With all of them open, each layer adds clean - corrupt to what comes from below."""
    site = "blocks.*.resid_post"
    there, here = (run(llama, t, (site,), logits=False)[1][site] for t in (clean, corrupt))
    opened = edit(site, PerLayer(Add(there - here)))
    ends = (metric(run(llama, corrupt, (), e, logits="last")[0]) for e in ((opened,), ()))
    change = next(ends) - next(ends)
    scores = attribute(llama, clean, corrupt, metric, (site,), steps=64)[site]
    np.testing.assert_allclose(scores.sum((0, 2)), change, rtol=0.02, atol=0.02)
