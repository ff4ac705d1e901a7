"""Rewritten weights: against their formulas in float64, and models that must not notice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.edits import Add, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh
from jaxdiff.models import (
    LM,
    ModelConfig,
    center_unembedding,
    center_writing,
    fold_norms,
    init,
    load,
    merge,
    run,
    save,
    sites,
    unstack,
    with_edits,
)
from jaxdiff.models._lm import abstract
from jaxdiff.models._weights import flatten, unflatten

# Compiling is most of a test's time; the results are compared with tolerances anyway.
QUICK = {"xla_backend_optimization_level": 0}
go = jax.jit(run, static_argnames=("taps", "logits"), compiler_options=QUICK)

# LayerNorm with one or two branches at once; biases; experts; offsets and norms of outputs; norms
# of outputs only.
FAMILIES = (
    "gpt2",
    "gpt_neox_parallel",
    "llama_mha_tied_biases",
    "qwen3_moe",
    "gemma2_window_caps",
    "olmo2",
)
LAYER_NORM = FAMILIES[:2]
READERS = {
    "blocks.attn_norm": ("blocks.attn.q", "blocks.attn.k", "blocks.attn.v"),
    "blocks.mlp_norm": ("blocks.mlp.gate", "blocks.mlp.up", "blocks.mlp.router"),
}
LAYER = ModelConfig(
    vocab_size=24, d_model=16, n_layers=2, n_heads=4, d_mlp=24, norm="layer", tied=False
)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 24, (2, 7)).astype(np.int32)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, golden):
    """A model whose norms are far from 1 (or from 0, where they are added to 1)."""
    return load(golden / request.param)


def _noisy(spec):
    rng = np.random.default_rng(1)
    lm = init(spec, key=jax.random.key(0))
    return jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), lm)


def _close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def _equal(a, b):
    return jax.tree.all(
        jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b)
    )


def _wide(lm):
    return {path: np.asarray(leaf, np.float64) for path, leaf in flatten(lm.params).items()}


def test_folding_changes_what_norms_return_and_nothing_else(model, tokens):
    folded, names = fold_norms(model), tuple(sites(model))
    before, after = go(model, tokens, names)[1], go(folded, tokens, names)[1]
    norms = (".attn.in", ".mlp.in") if model.spec.pre_norms else ()
    for site in names:
        if site == "final_norm" or site.endswith(norms):
            assert np.abs(before[site] - after[site]).max() > 0.05, site
        else:
            _close(before[site], after[site], rtol=1e-4, atol=2e-5)


def test_folded_weights_are_products_and_sums(model):
    before, after = _wide(model), _wide(fold_norms(model))
    offset = model.spec.norm_offset
    head = before.get("unembedding", before["embedding"])
    scale = before["final_norm.weight"] + offset
    expected = {
        **before,
        "unembedding": head * scale,
        "final_norm.weight": np.full_like(scale, 1 - offset),
    }
    if model.spec.norm == "layer":
        expected["final_norm.bias"] = before["final_norm.bias"] / scale
    for norm, maps in READERS.items():
        if not model.spec.pre_norms:
            continue
        scale = before[f"{norm}.weight"] + offset
        expected[f"{norm}.weight"] = np.full_like(scale, 1 - offset)
        if model.spec.norm == "layer":
            expected[f"{norm}.bias"] = np.zeros_like(scale)
        for path in maps:
            if f"{path}.weight" not in before:
                continue
            weight = before[f"{path}.weight"]
            expected[f"{path}.weight"] = np.einsum("n...oi,ni->n...oi", weight, scale)
            if model.spec.norm == "layer":
                moved = np.einsum("noi,ni->no", weight, before[f"{norm}.bias"])
                expected[f"{path}.bias"] = before[f"{path}.bias"] + moved
    assert after.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(after[path], value, rtol=1e-6, atol=1e-6, err_msg=path)


def test_what_stays_is_shared(golden):
    lm = load(golden / "gpt2")
    before = flatten(lm.params)
    for change, some in ((fold_norms, "mlp.down"), (center_writing, "mlp.up")):
        after = flatten(change(lm).params)
        shared = {path for path, leaf in before.items() if after[path] is leaf}
        changed = {path for path, leaf in before.items() if not np.array_equal(leaf, after[path])}
        assert f"blocks.{some}.weight" in shared and shared.isdisjoint(changed)
        assert shared | changed == before.keys()


def test_weights_apart_are_folded_as_stacked_ones(model):
    _close(fold_norms(unstack(model)), unstack(fold_norms(model)), rtol=1e-6, atol=1e-6)


def test_a_folded_model_is_saved_and_loaded(model, tmp_path):
    folded = fold_norms(model)
    save(folded, tmp_path)
    again = load(tmp_path)
    assert again.spec == folded.spec == dataclasses.replace(model.spec, tied=False)
    assert again.graphdef == folded.graphdef and _equal(again.params, folded.params)


def test_bfloat16_is_rounded_once(golden):
    """The files are in bfloat16, so that both dtypes begin with the same numbers."""
    for change, case in (
        (fold_norms, "gpt2"),
        (fold_norms, "gemma2_untied_no_caps"),
        (center_writing, "gpt2"),
        (center_unembedding, "gpt2"),
    ):
        wide, half = (change(load(golden / case, dtype=d)) for d in ("float32", "bfloat16"))
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), wide.params)
        assert _equal(half.params, rounded)


def test_a_mesh_keeps_its_layout(golden):
    lm = load(golden / "llama_mha_tied_biases", mesh=make_mesh(data=2))
    before, after = flatten(lm.params), flatten(fold_norms(lm).params)
    before["unembedding"] = before["embedding"]
    for path, leaf in after.items():
        assert leaf.sharding.is_equivalent_to(before[path].sharding, leaf.ndim), path


def test_norms_keep_biases_that_have_nowhere_to_go(tokens):
    """A weight of 0 cannot move either, as its bias could not be divided by it."""
    flat = {path: np.array(leaf) for path, leaf in flatten(_noisy(LAYER).params).items()}
    flat["blocks.attn_norm.weight"][0, 3] = flat["blocks.mlp_norm.weight"][1, 5] = 0
    flat["final_norm.weight"][2] = 0
    params = jax.tree.map(jnp.asarray, unflatten(flat))
    lm = LM(params=params, graphdef=abstract(LAYER)[0], spec=LAYER)
    folded = fold_norms(lm)
    before, after = _wide(lm), _wide(folded)
    for norm in (*READERS, "final_norm"):
        weight = before[f"{norm}.weight"]
        zero = weight == 0
        assert zero.sum() == 1
        np.testing.assert_array_equal(after[f"{norm}.weight"], np.where(zero, 0, 1))
        expected = before[f"{norm}.bias"] / np.where(zero, 1, weight)
        np.testing.assert_allclose(after[f"{norm}.bias"], expected, rtol=1e-6)
    _close(go(folded, tokens)[0], go(lm, tokens)[0], rtol=1e-4, atol=2e-5)

    def loss(params, change):
        logits, _ = run(change(dataclasses.replace(lm, params=params)), tokens)
        assert logits is not None
        return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 0])

    gradient = jax.jit(jax.grad(loss), static_argnums=1, compiler_options=QUICK)
    plain = gradient(lm.params, lambda lm: lm)
    assert all(np.abs(plain["final_norm"][name][2]) > 1e-4 for name in ("weight", "bias"))
    _close(gradient(lm.params, fold_norms), plain, rtol=1e-3, atol=1e-5)


def test_adapters_beside_the_weights_are_changed_with_them():
    maps = ("attn.q", "attn.v", "attn.o", "mlp.up", "mlp.down")
    spec = dataclasses.replace(
        LAYER,
        rope=None,
        context=9,
        gated=False,
        attention_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        lora=tuple((name, 2) for name in maps),
    )
    lm = _noisy(spec)
    for change in (fold_norms, center_writing):
        merged = merge(change(lm))
        assert merged.spec.lora == () and change(lm).spec.lora == spec.lora
        _close(merged.params, change(merge(lm)).params, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["gpt2", "llama_mha_tied_biases"])
def test_a_centered_unembedding_keeps_log_probabilities(golden, tokens, case):
    lm = load(golden / case)
    before, after = (np.asarray(go(each, tokens)[0]) for each in (lm, center_unembedding(lm)))
    assert np.abs(before.mean(-1)).max() > 0.05
    np.testing.assert_allclose(after.mean(-1), 0, atol=1e-5)
    _close(jax.nn.log_softmax(after), jax.nn.log_softmax(before), rtol=1e-5, atol=2e-5)
    embedding = lm.params["embedding"]
    assert (center_unembedding(lm).params["embedding"] == embedding).all()


@pytest.mark.parametrize("case", LAYER_NORM)
def test_centered_writing_leaves_a_stream_without_mean(golden, tokens, case):
    lm = load(golden / case)
    centered, names = center_writing(lm), tuple(sites(lm))
    before, after = go(lm, tokens, names)[1], go(centered, tokens, names)[1]
    ends = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_in", "mlp_in")
    written = (*ends, "attn.out", "mlp.out", "attn_out", "mlp_out")
    for site in names:
        expected = before[site]
        if site.endswith(written):
            assert np.abs(expected.mean(-1)).max() > 0.02, site
            expected -= expected.mean(-1, keepdims=True)
        _close(after[site], expected, rtol=1e-4, atol=2e-5)
    _close(center_writing(unstack(lm)), unstack(centered), rtol=1e-6, atol=1e-6)


def test_what_would_change_predictions_is_refused(llama, gemma2):
    with pytest.raises(JaxdiffError, match=r"soft cap of 3\.0"):
        center_unembedding(gemma2)
    for changes, reason in (
        ({"norm": "rms"}, "RMSNorms divide"),
        ({"pre_norms": False}, "read the mean"),
        ({"post_norms": True}, "add a mean again"),
    ):
        spec = dataclasses.replace(LAYER, **changes)
        with pytest.raises(JaxdiffError, match=reason) as error:
            center_writing(dataclasses.replace(llama, spec=spec))
        assert "GPT-2" in error.value.fix and error.value.where == "center_writing"
    edited = with_edits(llama, (edit("final_norm", Add(jnp.ones(16))),))
    for change in (fold_norms, center_unembedding, center_writing):
        with pytest.raises(JaxdiffError, match="carries 1 edits") as error:
            change(edited)
        assert f"with_edits({change.__name__}(lm), edits)" in error.value.fix
