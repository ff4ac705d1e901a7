"""A dry run knows what a run returns, without weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.edits import Add, Heads, Last, TopK, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import ModelConfig, Tap, run, shapes, sites, unstack

TAPS = (
    "blocks.*.attn.pattern",
    "model.layers.1",
    Tap("embed", reduce=Last(), name="last"),
    Tap("blocks.*.attn_out", view=Heads(2), reduce=TopK(2), dtype="float16", name="strongest"),
)


def test_it_is_what_a_run_returns(model, tokens):
    for lm in (model("llama"), unstack(model("gemma2"))):
        lm = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), lm)
        change = (edit("blocks.1.resid_mid", Add(np.ones(8))),)
        for logits in (True, "last", False):
            expected = shapes(lm, tokens.shape, TAPS, change, logits=logits)
            found = run(lm, tokens, TAPS, change, logits=logits)
            assert jax.tree.structure(found) == jax.tree.structure(expected)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)
            if logits != "last":
                break


def test_a_model_that_fits_no_memory():
    spec = ModelConfig(
        vocab_size=128_000, d_model=16_384, n_layers=126, n_heads=128, n_kv_heads=8, d_mlp=53_248
    )
    logits, found = shapes(spec, (64, 8192), tuple(sites(spec))[-4:] + ("blocks.*.resid_post",))
    assert logits.shape == (64, 8192, 128_000) and logits.dtype == jnp.float32
    assert found["blocks.*.resid_post"].shape == (126, 64, 8192, 16_384)


def test_what_a_run_refuses_is_refused(llama):
    for change, says in (
        (edit("blocks.1.resid_mid", Add(np.ones(7))), "does not fit"),
        (edit("embed", Add(1.0), positions=5), "outside of the batch"),
        (edit("blocks.7.resid_mid", Add(1.0)), "no site"),
    ):
        with pytest.raises(JaxdiffError, match=says):
            shapes(llama.spec, (3, 5), edits=(change,))
