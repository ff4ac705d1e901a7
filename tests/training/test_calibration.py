"""The threshold is the exact quantile; what is measured is what NumPy measures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import DictionaryConfig
from jaxdiff.dictionaries import code_norms, encode, init
from jaxdiff.errors import JaxdiffError
from jaxdiff.training import calibrate, evaluate

LATENTS, K = 16, 2.3


@pytest.fixture(scope="module")
def case(memory):
    source = memory.gaussian_source(rows=300)
    mask = np.random.default_rng(1).random(300) < 0.8

    def validation():
        for i in range(0, 300, 100):
            yield memory.batch_of(source.x[i : i + 100], mask[i : i + 100])

    return source, mask, validation


def dictionary(norm, activation="batch_topk", k=K):
    config = DictionaryConfig(
        latents=LATENTS, k=k, code_norm=norm, activation=activation, same_init=False
    )
    d = init(config, (2, 6), key=jax.random.key(0))
    rng = np.random.default_rng(2)
    scale = rng.uniform(0.5, 2, (LATENTS, 2, 1)).astype(np.float32)
    bias = jnp.asarray(rng.normal(size=LATENTS), jnp.float32)
    return dataclasses.replace(d, W_dec=d.W_dec * scale, b_enc=bias)


def keys_of(d, source, mask):
    x = jnp.asarray(source.normalization.apply(source.x[mask]))
    f = np.asarray(encode(dataclasses.replace(d, activation="relu"), x))
    norms = np.asarray(code_norms(d))
    return f * (norms.T if norms.ndim == 2 else norms)


@pytest.mark.parametrize("norm", ["crosscoder", "none"])
def test_exact_quantile(case, norm):
    source, mask, validation = case
    d = calibrate(dictionary(norm), validation, source.normalization)
    ordered = np.sort(keys_of(d, source, mask).ravel())[::-1]
    n = round(K * mask.sum())
    np.testing.assert_allclose(float(d.threshold), (ordered[n - 1] + ordered[n]) / 2, rtol=1e-6)
    assert evaluate(d, validation, source.normalization).l0 == pytest.approx(n / mask.sum())


def test_each_model_has_its_own_when_decoupled(case):
    source, mask, validation = case
    d = calibrate(dictionary("decoupled"), validation, source.normalization)
    keys = keys_of(d, source, mask)
    n = round(K * mask.sum())
    for m in range(2):
        assert int((keys[:, m] > float(d.threshold[m])).sum()) == n
    assert float(d.threshold[0]) != float(d.threshold[1])
    assert evaluate(d, validation, source.normalization).l0 == pytest.approx(n / mask.sum())


def test_fewer_positive_keys_than_asked_for(case):
    source, mask, validation = case
    d = dictionary("crosscoder", k=15.0)
    d = calibrate(d, validation, source.normalization)
    positive = int((keys_of(d, source, mask) > 0).sum())
    assert positive < 15 * mask.sum()
    l0 = evaluate(d, validation, source.normalization).l0
    assert l0 == pytest.approx(positive / mask.sum())


@pytest.mark.parametrize("k, kept", [(1.4, 1), (1.6, 2)])
def test_ties_go_to_the_nearer_side(memory, k, kept):
    """Every row has one key of 3 and one of 1: no threshold keeps 1.4 of them."""
    d = dictionary("none", k=k)
    W = np.zeros((2, 6, LATENTS), np.float32)
    W[0, 0, 0], W[0, 0, 1] = 3, 1
    d = dataclasses.replace(d, W_enc=jnp.asarray(W), b_enc=jnp.zeros(LATENTS))
    x = np.zeros((20, 2, 6), np.float32)
    x[:, 0, 0] = 1
    source = memory.MemorySource(x)
    d = calibrate(d, source.in_order, source.normalization)
    assert float(d.threshold) == pytest.approx({1: 2.0, 2: 0.5}[kept])
    assert evaluate(d, source.in_order, source.normalization).l0 == kept


def test_other_rules_have_nothing_to_calibrate(case):
    source, _, validation = case
    d = dictionary("crosscoder", "relu")
    assert calibrate(d, validation, source.normalization) is d


def test_no_valid_row(memory, case):
    source, _, _ = case
    empty = [memory.batch_of(source.x[:5], np.zeros(5, bool))]
    with pytest.raises(JaxdiffError, match="no held-out activation"):
        calibrate(dictionary("sae"), lambda: empty, source.normalization)


def test_evaluation_matches_numpy(case):
    source, mask, validation = case
    d = dictionary("crosscoder", "relu")
    found = evaluate(d, validation, source.normalization)
    x = np.asarray(source.normalization.apply(source.x[mask]), np.float64)
    f = np.maximum(np.einsum("rmd,mdl->rl", x, np.asarray(d.W_enc)) + np.asarray(d.b_enc), 0)
    residual = ((x - np.einsum("rl,lmd->rmd", f, np.asarray(d.W_dec))) ** 2).sum((0, 2))
    total = ((x - x.mean(0)) ** 2).sum((0, 2))
    assert found.tokens == mask.sum()
    assert found.l0 == pytest.approx((f > 0).sum() / mask.sum())
    np.testing.assert_allclose(found.fve, 1 - residual / total, rtol=1e-5)
    assert found.fve_all == pytest.approx(1 - residual.sum() / total.sum(), rel=1e-5)
    assert found.dead == np.mean(~(f > 0).any(0))
