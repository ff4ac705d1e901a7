"""JumpReLU: loss and straight-through gradients against torch in float64, from the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.dictionaries import Dictionary, encode
from jaxdiff.dictionaries.constraints import constrain, release

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


class Jump(torch.autograd.Function):
    """z where z > t; arXiv:2407.14435, equations 10 and 11."""

    @staticmethod
    def forward(ctx, z, t, width):
        ctx.save_for_backward(z, t)
        ctx.width = width
        return z * (z > t)

    @staticmethod
    def backward(ctx, *gradients):
        (g,), (z, t) = gradients, ctx.saved_tensors
        near = ((z - t).abs() < ctx.width / 2).double()
        return g * (z > t), (-t / ctx.width * near * g).sum(0), None


class Step(torch.autograd.Function):
    """1 where z > t."""

    @staticmethod
    def forward(ctx, z, t, width):
        ctx.save_for_backward(z, t)
        ctx.width = width
        return (z > t).double()

    @staticmethod
    def backward(ctx, *gradients):
        (g,), (z, t) = gradients, ctx.saved_tensors
        near = ((z - t).abs() < ctx.width / 2).double()
        return None, (-near / ctx.width * g).sum(0), None


@pytest.mark.parametrize("penalty, pre", [("tanh", 0.02), ("l0", 0.0)])
def test_loss_and_gradients(variant, penalty, pre):
    config, d, x = variant.problem(
        activation="jumprelu", penalty=penalty, bandwidth=0.7, threshold=0.4, pre_penalty=pre
    )
    parts, gradient = variant.loss_of(config, d, x, l1=0.1)
    p = {n: torch.tensor(a, requires_grad=True) for n, a in variant.float64(d).items()}
    X = torch.tensor(np.asarray(x, np.float64))
    z = torch.einsum("bmd,mdl->bl", X, p["W_enc"]) + p["b_enc"]
    t = p["threshold"].exp()
    f = Jump.apply(z, t, 0.7)
    error = X - torch.einsum("bl,lmd->bmd", f, p["W_dec"]) - p["b_dec"]
    N = p["W_dec"].norm(dim=-1).sum(-1)
    sparse = torch.tanh(4 * f * N) if penalty == "tanh" else Step.apply(z, t, 0.7)
    value = error.norm(dim=-1).mean() + 0.1 * sparse.sum() / len(X)
    value = value + pre * (torch.relu(t - z) * N).sum() / len(X)
    value.backward()
    variant.close(parts.loss, value.item())
    variant.close(parts.l0, (z > t).sum(1).double().mean().item())
    for name, reference in p.items():
        variant.close(getattr(gradient, name), reference.grad)
    assert np.count_nonzero(gradient.threshold) > variant.latents / 2


def test_the_gradient_of_l0_is_its_difference_over_the_window(variant):
    """What is differentiated is the mean L0 itself, as far as a window of rows can tell."""
    settings = {"activation": "jumprelu", "penalty": "l0", "bandwidth": 0.5, "threshold": 0.6}
    config, d, x = variant.problem(**settings)
    weight = 1e4  # The reconstruction's part of the gradient is far below.
    _, gradient = variant.loss_of(config, d, x, l1=weight)
    pre = np.einsum("bmd,mdl->bl", np.asarray(x, np.float64), np.asarray(d.W_enc, np.float64))
    pre += np.asarray(d.b_enc)
    t = np.exp(np.asarray(d.threshold, np.float64))
    more, less = ((pre > t + s * 0.25).sum(axis=0) / len(x) for s in (1, -1))
    # The chain rule through t = exp(log t).
    np.testing.assert_allclose(gradient.threshold, weight * t * (more - less) / 0.5, rtol=1e-3)


def test_what_is_trained_is_what_encode_does(variant):
    config, free, x = variant.problem(activation="jumprelu", threshold=0.4)
    d = constrain(free, config)
    assert isinstance(d, Dictionary) and d.threshold.min() > 0
    np.testing.assert_allclose(release(d, config).threshold, free.threshold, rtol=1e-5, atol=1e-5)
    parts, _ = variant.loss_of(config, free, x)
    f = np.asarray(jax.jit(encode)(d, x))
    assert round(float(parts.l0) * len(x), 3) == (f > 0).sum()
    assert (np.asarray(parts.fired) == (f > 0).any(axis=0)).all()
    assert jnp.min(jnp.where(f > 0, f - d.threshold[None], 1.0)) > 0
