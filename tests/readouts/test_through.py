"""The logit lens through a map of each layer."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import models, readouts
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import ModelConfig, Tap
from jaxdiff.readouts import Affine

_spec = importlib.util.spec_from_file_location("_float64", Path(__file__).parent / "_float64.py")
_float64 = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_float64)

N, D = 3, 16


@pytest.fixture
def maps() -> Affine:
    rng = np.random.default_rng(3)
    return Affine(*(rng.normal(0, 0.5, s).astype(np.float32) for s in ((N, D, D), (N, D))))


IDENTITY = Affine(np.broadcast_to(np.eye(D, dtype=np.float32), (N, D, D)))


def test_through_the_identity_it_is_the_logit_lens(some, tokens):
    ask = dict(targets=3, kl=True, logits=True)
    plain = readouts.logit_lens(some, tokens, **ask)
    found = readouts.logit_lens(some, tokens, **ask, through=IDENTITY)
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_in_bfloat16_the_norm_reads_what_it_reads_without_a_map(llama, tokens):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), llama)
    plain = readouts.logit_lens(half, tokens, logits=True).logits
    found = readouts.logit_lens(half, tokens, logits=True, through=IDENTITY).logits
    assert found.dtype == plain.dtype
    np.testing.assert_allclose(found, plain, atol=0.02 * np.abs(plain).max())


def _expected(lm, stream, maps, layer):
    x = np.asarray(stream, np.float64)
    return _float64.read(lm, x @ maps.weight[layer].astype(np.float64).T + maps.bias[layer])


def test_each_layer_has_its_own_map(some, tokens, maps):
    site = "blocks.*.resid_post"
    streams = models.run(some, tokens, (site,), logits=False)[1][site]
    for lm in (some, models.unstack(some)):
        found = readouts.logit_lens(lm, tokens, through=maps, logits=True).logits
        for layer in range(N):
            expected = _expected(some, streams[layer], maps, layer)
            np.testing.assert_allclose(found[layer], expected, rtol=1e-4, atol=1e-4)


def test_one_layer_that_is_read_has_the_map_of_its_number(llama, tokens, maps):
    sites = ("blocks.1.resid_mid", "blocks.2.resid_post")
    streams = models.run(llama, tokens, sites, logits=False)[1]
    for site, layer in zip(sites, (1, 2), strict=True):
        found = readouts.logit_lens(llama, tokens, site=site, through=maps, logits=True).logits
        expected = _expected(llama, streams[site], maps, layer)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_positions_and_other_maps_in_one_program(llama, tokens, maps):
    full = readouts.logit_lens(llama, tokens, through=maps, k=26)
    found = readouts.logit_lens(llama, tokens, through=maps, k=26, positions=[1, -1])
    np.testing.assert_allclose(found.probabilities, full.probabilities[:, :, [1, 5]], rtol=1e-4)
    before = models.traces("logit_lens")
    other = readouts.logit_lens(llama, tokens, through=Affine(2 * maps.weight, maps.bias), k=26)
    assert models.traces("logit_lens") == before
    assert np.abs(other.probabilities - full.probabilities).max() > 1e-3


def test_into_a_model_of_another_width(llama, tokens):
    spec = ModelConfig(vocab_size=26, d_model=8, n_layers=2, n_heads=2, d_mlp=8)
    other = models.init(spec, key=jax.random.key(1))
    rng = np.random.default_rng(3)
    maps = Affine(*(rng.normal(size=s).astype(np.float32) for s in ((N, 8, D), (N, 8))))
    site = "blocks.*.resid_post"
    tap = Tap(site, reduce=readouts.Lens(other, through=maps, logits=True), name="lens")
    found = models.run(llama, tokens, (tap, site), logits=False)[1]
    for layer in range(N):
        expected = _expected(other, found[site][layer], maps, layer)
        np.testing.assert_allclose(found["lens"].logits[layer], expected, rtol=1e-4, atol=1e-4)


def _zeros(*shapes):
    return Affine(*(np.zeros(shape, np.float32) for shape in shapes))


@pytest.mark.parametrize(
    ("through", "asked", "says"),
    [
        (
            _zeros((D, D)),
            {},
            r"weight \[16, 16\] and a bias \[\].* are \[3, 16, 16\] and \[3, 16\]",
        ),
        (_zeros((2, D, D), (2, D)), {}, r"\[2, 16, 16\] and a bias \[2, 16\].*\n.*\n.*train_lens"),
        (_zeros((N, D, D), (D,)), {}, r"a bias \[16\]"),
        (np.zeros((N, D, D)), {}, "is an Affine that has a map"),
        (_zeros((N, D, D)), dict(site="embed"), "has no layer"),
    ],
)
def test_maps_that_do_not_fit_are_refused_before_anything_runs(llama, tokens, through, asked, says):
    before = models.traces()
    with pytest.raises(JaxdiffError, match=says):
        readouts.logit_lens(llama, tokens, through=through, **asked)
    assert models.traces() == before
    tap = Tap(asked.get("site", "blocks.1.resid_mid"), reduce=readouts.Lens(llama, through=through))
    with pytest.raises(JaxdiffError, match=says.partition(r".*\n")[0]):
        models.run(llama, tokens, (tap,), logits=False)
