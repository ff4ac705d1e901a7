"""Gated: its loss in torch, written from the paper, and the jumprelu dictionary that it ends as."""

import jax
import numpy as np
import pytest

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries import encode
from jaxdiff.dictionaries.constraints import constrain, release
from jaxdiff.dictionaries.formats._convert import gated
from jaxdiff.training import fit

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("loss", ["mse", "l2"])
def test_loss_and_gradients(variant, loss):
    """arXiv:2404.16014, section 3; constant decoder norms weigh where they are 1 in the paper."""
    config, d, x = variant.problem(activation="gated", loss=loss)
    parts, gradient = variant.loss_of(config, d, x, l1=0.1)
    p = {n: torch.tensor(a, requires_grad=True) for n, a in variant.float64(d).items()}
    X = torch.tensor(np.asarray(x, np.float64))
    a = torch.einsum("bmd,mdl->bl", X, p["W_enc"])
    gate = a + p["threshold"][:, 0]
    magnitude = torch.relu(a * p["threshold"][:, 1].exp() + p["b_enc"])
    f = (gate > 0) * magnitude
    g = torch.relu(gate)

    def size(error):
        norms = error.norm(dim=-1)
        return (norms**2 if loss == "mse" else norms).mean()

    error = X - torch.einsum("bl,lmd->bmd", f, p["W_dec"]) - p["b_dec"]
    held = X - torch.einsum("bl,lmd->bmd", g, p["W_dec"].detach()) - p["b_dec"].detach()
    norms = p["W_dec"].detach().norm(dim=-1).sum(-1)
    value = size(error) + 0.1 * (g * norms).sum() / len(X) + size(held)
    value.backward()
    variant.close(parts.loss, value.item())
    variant.close(parts.aux, size(held).item())
    variant.close(parts.l0, (f > 0).sum().item() / len(X))
    for name, reference in p.items():
        variant.close(getattr(gradient, name), reference.grad)


def test_it_is_the_jumprelu_dictionary_that_its_files_are_read_as(variant):
    """`formats` reads other tools' gated SAEs by the same identity, written a second time."""
    config, free, x = variant.problem(activation="gated")
    d = constrain(free, config)
    p, X = variant.float64(free), np.asarray(x, np.float64)
    gate, scale = p["threshold"].T
    factor, threshold = gated(gate, scale, p["b_enc"])
    variant.close(d.threshold, threshold)
    variant.close(d.W_enc, p["W_enc"] * factor)
    a = np.einsum("bmd,mdl->bl", X, p["W_enc"])
    expected = (a + gate > 0) * np.maximum(a * np.exp(scale) + p["b_enc"], 0)
    np.testing.assert_allclose(jax.jit(encode)(d, x), expected, rtol=1e-4, atol=1e-5)
    assert 0 < (expected > 0).mean() < 1
    again = constrain(release(d, config), config)
    np.testing.assert_allclose(again.threshold, d.threshold, rtol=1e-5, atol=1e-6)


def test_training_ends_in_a_jumprelu_dictionary():
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(32, 2, 5)).astype(np.float32)] * 60
    settings = {"latents": 12, "k": 3, "activation": "gated", "l1": 0.01}
    train = TrainConfig(steps=60, batch=32, lr=1e-2, warmup=0, log_every=1)
    d, lines = fit(DictionaryConfig(**settings), train, batches, seed=0)
    assert d.activation == "jumprelu" and d.threshold.shape == (12,)
    assert lines[-1]["loss"] < lines[0]["loss"]
