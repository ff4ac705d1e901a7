"""Matryoshka: the loss is the sum over prefixes of one selection, in float64 NumPy."""

import dataclasses

import numpy as np
import pytest

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.training.compiled import is_sparse

PREFIXES = (3, 7)


def expected(p, x, k, prefixes):
    """Returns the loss of BatchTopK codes over the whole, decoded prefix by prefix."""
    f = np.maximum(np.einsum("bmd,mdl->bl", x, p["W_enc"]) + p["b_enc"], 0)
    keys = f * np.linalg.norm(p["W_dec"], axis=-1).sum(axis=1)
    a = np.where(keys >= np.sort(keys.ravel())[-round(k * len(x))], f, 0)
    value = 0
    for n in (*prefixes, f.shape[1]):
        error = x - np.einsum("bl,lmd->bmd", a[:, :n], p["W_dec"][:n]) - p["b_dec"]
        value += np.linalg.norm(error, axis=-1).mean()
    return value


@pytest.mark.parametrize("prefixes", [(), PREFIXES])
def test_loss_and_gradient(variant, prefixes):
    config, d, x = variant.problem(prefixes=prefixes, aux=0.0)
    parts, gradient = variant.loss_of(config, d, x)
    p, exact = variant.float64(d), np.asarray(x, np.float64)
    variant.close(parts.loss, expected(p, exact, config.k, prefixes))
    rng = np.random.default_rng(1)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        # Along a random direction, since the selection is a constant of differentiation.
        step = rng.normal(size=p[name].shape)
        h = 1e-6
        ahead, behind = (
            expected({**p, name: p[name] + s * h * step}, exact, config.k, prefixes)
            for s in (1, -1)
        )
        found = float((np.asarray(getattr(gradient, name), np.float64) * step).sum())
        assert found == pytest.approx((ahead - behind) / (2 * h), rel=1e-3)


def test_the_term_of_a_prefix_is_the_loss_of_that_dictionary_alone(variant):
    """Where there is room for all positive latents, so that the others do not compete."""
    config, d, x = variant.problem(prefixes=(7,), aux=0.0, k=variant.latents)
    both = variant.loss_of(config, d, x)[0].loss
    whole = variant.loss_of(config.model_copy(update={"prefixes": ()}), d, x)[0].loss
    first = dataclasses.replace(
        d, W_enc=d.W_enc[..., :7], b_enc=d.b_enc[:7], W_dec=d.W_dec[:7], k=7.0
    )
    small = DictionaryConfig(latents=7, k=7, aux=0.0)
    variant.close(both - whole, variant.loss_of(small, first, x)[0].loss)


def test_the_dense_step_is_taken():
    """The sparse one does not know prefixes."""
    config = DictionaryConfig(latents=12, k=2, prefixes=PREFIXES)
    assert not is_sparse(config, TrainConfig(beta1=0.0))
    with pytest.raises(JaxdiffError, match="dictionary.prefixes"):
        is_sparse(config, TrainConfig(beta1=0.0, step="sparse"))
