"""Two models compared while they run, against float64 on what each computes alone."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import ModelConfig, init, run, unstack
from jaxdiff.readouts import compare

SPEC = ModelConfig(vocab_size=24, d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, d_mlp=24)
SITES = ("blocks.*.resid_post", "blocks.1.attn.z")


@pytest.fixture(scope="module")
def pair():
    base = init(SPEC, key=jax.random.key(0))
    rng = np.random.default_rng(3)
    return base, jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), base)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 24, (2, 6)).astype(np.int32)


@pytest.mark.parametrize("layout", [lambda lm: lm, unstack])
def test_against_float64(pair, tokens, layout):
    found = compare(*map(layout, pair), tokens, SITES)
    (a, acts_a), (b, acts_b) = (run(lm, tokens, SITES) for lm in pair)
    p, q = (np.asarray(x, np.float64) for x in (b, a))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    np.testing.assert_allclose(found.kl, (np.exp(p) * (p - q)).sum(-1), rtol=1e-3, atol=1e-6)
    for site in SITES:
        x, y = (np.asarray(acts[site], np.float64) for acts in (acts_a, acts_b))
        lead = 3 if "*" in site else 2
        x, y = (v.reshape(*v.shape[:lead], -1) for v in (x, y))
        nx, ny = (np.linalg.norm(v, axis=-1) for v in (x, y))
        np.testing.assert_allclose(found.cosine[site], (x * y).sum(-1) / nx / ny, atol=1e-5)
        distance = np.linalg.norm(x - y, axis=-1) / nx
        np.testing.assert_allclose(found.distance[site], distance, rtol=1e-4)


def test_a_model_does_not_differ_from_itself(pair, tokens):
    found = compare(pair[0], pair[0], tokens)
    assert np.abs(found.kl).max() < 1e-6
    assert np.abs(found.cosine[SITES[0]] - 1).max() < 1e-5
    assert np.abs(found.distance[SITES[0]]).max() == 0


def test_what_cannot_be_compared_is_refused(pair, tokens):
    narrow = init(dataclasses.replace(SPEC, d_mlp=20), key=jax.random.key(0))
    with pytest.raises(JaxdiffError, match="cannot be compared"):
        compare(pair[0], narrow, tokens, ("blocks.1.mlp.post",))
    with pytest.raises(JaxdiffError, match="cannot be compared"):
        compare(*pair, tokens, ("blocks.1.attn.pattern",))


def test_padding_is_no_number_and_a_text_beside_it_is_as_without(pair, tokens):
    padded = np.concatenate([tokens, np.full((2, 2), 7, np.int32)], axis=1)
    sequences = np.repeat([[0], [0]], 8, axis=1).astype(np.int32)
    sequences[:, 6:] = -1
    found, expected = (
        compare(*pair, padded, SITES, sequences=sequences),
        compare(*pair, tokens, SITES),
    )
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert np.isnan(one[..., 6:]).all()
        np.testing.assert_allclose(one[..., :6], other, rtol=1e-4, atol=1e-5)
