"""Averages of Jacobians, compared with whole Jacobians that are averaged by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import edits, models, readouts
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import ModelConfig
from jaxdiff.readouts import _jacobian_lens

N, D, T = 3, 16, 7
SITE, END = "blocks.*.resid_post", "blocks.2.resid_post"
TWO = np.array([[0, 0, 0, 0, 1, 1, 1], [2, 2, 2, 2, 2, -1, -1]], np.int32)
"""Three texts; of two, one is packed behind another."""


@pytest.fixture
def texts() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 24, (2, T)).astype(np.int32)


def _whole(lm, tokens, sequences, site=SITE):
    """All derivatives of the last stream, `[B, T, D, N, T, D]`, of each row by itself, forward."""

    def final(by):
        add = edits.edit(site, edits.PerLayer(edits.Add(by[:, None])))
        return models.run(lm, tokens, (END,), (add,), sequences=sequences, logits=False)[1][END]

    def slopes(directions):
        _, along = jax.linearize(final, jnp.zeros((N, T, D)))
        return jax.lax.map(along, directions)

    directions = jnp.eye(N * T * D).reshape(-1, N, T, D)
    found = np.asarray(jax.jit(slopes)(directions), np.float64)
    return np.moveaxis(found, 0, -1).reshape(*found.shape[1:], N, T, D)


def _average(whole, sequences, skip):
    """The definition, text by text and position by position."""
    found = []
    for row, numbers in zip(whole, sequences, strict=True):
        for text in sorted(set(numbers[numbers >= 0].tolist())):
            used = np.flatnonzero(numbers == text)[skip:-1]
            if not len(used):
                continue
            sums = [sum(row[after, :, :, t] for after in used if after >= t) for t in used]
            found.append(np.mean(sums, axis=0))
    return np.swapaxes(np.mean(found, axis=0), 0, 1)


def test_it_is_the_average_of_the_definition(lm, texts):
    whole = _whole(lm, texts, TWO)
    for skip in (0, 1):
        found = readouts.jacobian_lens(lm, [{"tokens": texts, "sequences": TWO}], skip=skip)
        expected = _average(whole, TWO, skip)
        assert found.weight.shape == (N, D, D) and found.weight.dtype == jnp.float32
        np.testing.assert_allclose(found.weight, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.bias, np.zeros((N, D)))
    np.testing.assert_allclose(found.weight[-1], np.eye(D), atol=1e-6)
    assert np.abs(found.weight[0] - np.eye(D)).max() > 0.05


def test_texts_of_all_batches_count_alike(llama, texts):
    rows = np.zeros_like(TWO)
    one = {"tokens": texts, "sequences": TWO}
    other = {"tokens": texts[::-1], "sequences": rows}
    three, two = (readouts.jacobian_lens(llama, [batch], skip=1).weight for batch in (one, other))
    before = models.traces("jacobian_lens")
    found = readouts.jacobian_lens(llama, [one, other], skip=1)
    np.testing.assert_allclose(found.weight, (3 * three + 2 * two) / 5, rtol=1e-5, atol=1e-6)
    readouts.jacobian_lens(llama, [one], skip=2)
    assert models.traces("jacobian_lens") == before
    plain = readouts.jacobian_lens(llama, [{"tokens": texts[::-1]}], skip=1)
    np.testing.assert_allclose(plain.weight, two, rtol=1e-4, atol=1e-5)


def test_row_by_row_and_from_weights_apart_it_is_the_same(gpt2, texts):
    batches = [{"tokens": texts, "sequences": TWO}]
    whole = readouts.jacobian_lens(gpt2, batches, skip=1)
    before = models.traces("jacobian_lens")
    rows = readouts.jacobian_lens(gpt2, batches, skip=1, memory=1)
    assert models.traces("jacobian_lens") == before + 1
    np.testing.assert_allclose(rows.weight, whole.weight, rtol=1e-5, atol=1e-5)
    apart = readouts.jacobian_lens(models.unstack(gpt2), batches, skip=1)
    np.testing.assert_allclose(apart.weight, whole.weight, rtol=1e-4, atol=1e-5)


def test_memory_bounds_the_rows_that_are_run_at_once():
    spec = ModelConfig(vocab_size=9, d_model=8, n_layers=2, n_heads=2, d_mlp=8)
    one = 4 * 10 * 2 * (64 + 24 + 60)
    sizes = [_jacobian_lens._at_once(spec, (12, 10), memory) for memory in (1, 5 * one, 99 * one)]
    assert sizes == [1, 4, 12]


def test_products_large_enough_for_threads_are_right():
    """Optimized as it is outside of the tests: sizes beyond which CPU compilers use other code."""
    spec = ModelConfig(vocab_size=20, d_model=64, n_layers=2, n_heads=4, d_mlp=64)
    lm = models.init(spec, key=jax.random.key(0))
    texts = np.random.default_rng(0).integers(0, 20, (8, 64)).astype(np.int32)
    way = np.random.default_rng(1).normal(size=64).astype(np.float32)
    used = (np.arange(64) < 63).astype(np.float32)[None, :, None]

    def final(by):
        add = edits.edit("blocks.0.resid_post", edits.Add(by[None, None] * used))
        end = models.run(lm, texts, ("blocks.1.resid_post",), (add,), logits=False)[1]
        return jnp.sum(end["blocks.1.resid_post"] * used, axis=(0, 1))

    jax.config.update("jax_disable_most_optimizations", False)
    try:
        expected = jax.jvp(final, (jnp.zeros(64),), (way,))[1] / (8 * 63)
        found = readouts.jacobian_lens(lm, [{"tokens": texts}], skip=0).weight[0] @ way
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_other_sites_have_jacobians_of_their_own(gemma2, texts):
    site, rows = "blocks.*.mlp_out", np.zeros_like(TWO)
    found = readouts.jacobian_lens(gemma2, [{"tokens": texts}], site=site, skip=2)
    expected = _average(_whole(gemma2, texts, rows, site), rows, 2)
    np.testing.assert_allclose(found.weight, expected, rtol=1e-4, atol=1e-4)


def test_the_lens_reads_through_it(llama, texts):
    through = readouts.jacobian_lens(llama, [{"tokens": texts, "sequences": TWO}], skip=1)
    lens = readouts.logit_lens(llama, texts, through=through, kl=True)
    np.testing.assert_allclose(lens.kl[-1], 0, atol=1e-5)
    assert np.isfinite(lens.kl).all()


def test_in_bfloat16_sums_are_float32(llama, texts):
    batches = [{"tokens": texts, "sequences": TWO}]
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), llama)
    found = readouts.jacobian_lens(half, batches, skip=1).weight
    exact = readouts.jacobian_lens(llama, batches, skip=1).weight
    assert found.dtype == jnp.float32
    assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)


def test_what_has_no_average_is_said(llama, texts):
    batch = {"tokens": texts}

    def fit(*batches, lm=llama, **more):
        readouts.jacobian_lens(lm, batches, **more)

    before = models.traces()
    with pytest.raises(JaxdiffError, match="longer than the 16 positions"):
        fit(batch)
    with pytest.raises(JaxdiffError, match="longer than the 3 positions"):
        fit(skip=3)
    with pytest.raises(JaxdiffError, match="skip=-1"):
        fit(batch, skip=-1)
    with pytest.raises(JaxdiffError, match="fitted to all layers"):
        fit(batch, site=END, skip=1)
    with pytest.raises(JaxdiffError, match="a mapping with tokens"):
        fit(texts, skip=1)
    assert models.traces() == before
    with pytest.raises(JaxdiffError, match="longer than the 4 positions"):
        fit(batch | {"sequences": TWO}, skip=4)
    broken = jax.tree.map(lambda x: x * jnp.nan, llama)
    with pytest.raises(JaxdiffError, match=r"layers \[0, 1\] is not finite"):
        fit(batch, lm=broken, skip=1)
