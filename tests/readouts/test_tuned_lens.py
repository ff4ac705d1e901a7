"""Training maps of all layers: the loss, its gradient, and what is left out."""

import importlib.util
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import models, readouts
from jaxdiff.errors import JaxdiffError
from jaxdiff.readouts import Affine, _tuned_lens
from jaxdiff.types import TokenBatch

_spec = importlib.util.spec_from_file_location("_float64", Path(__file__).parent / "_float64.py")
_float64 = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_float64)

N, D = 3, 16
SITE = "blocks.*.resid_post"
PADDED = np.array([[0] * 6, [1, 1, 1, 1, -1, -1]], np.int32)
SGD, ADAM = optax.sgd(1.0), optax.adam(1e-2)


def _identity() -> Affine:
    return Affine(jnp.tile(jnp.eye(D)[None], (N, 1, 1)), jnp.zeros((N, D)))


def test_the_first_losses_are_those_of_the_logit_lens_in_float64(lm, tokens):
    batch = {"tokens": tokens, "sequences": PADDED}
    _, losses = readouts.train_lens(lm, [batch], optimizer=SGD, steps=1)
    logits, kept = models.run(lm, tokens, (SITE,), sequences=PADDED)
    lens = _float64.read(lm, kept[SITE])
    kl = _float64.reading(lens, 1, np.zeros((2, 6, 1), int), logits)["kl"]
    assert losses.shape == (1, N)
    np.testing.assert_allclose(losses[0], kl[:, PADDED >= 0].mean(-1), rtol=1e-4, atol=1e-6)
    # The identity is the best that the last layer can have.
    assert abs(losses[0, -1]) < 1e-6 < losses[0, 0]


def test_a_step_goes_down_the_gradient_of_the_lens(some, tokens):
    """Here all layers at once are differentiated through the reducer in the model's own program."""
    real = PADDED >= 0

    def loss(through):
        lens = readouts.logit_lens(some, tokens, through=through, kl=True, sequences=PADDED)
        return jnp.sum(jnp.where(real[None], lens.kl, 0.0)) / float(real.sum())

    expected = jax.tree.map(lambda x, g: x - g, _identity(), jax.grad(loss)(_identity()))
    batch = {"tokens": tokens, "sequences": PADDED}
    found, _ = readouts.train_lens(some, [batch], optimizer=SGD, steps=1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), found, expected)
    assert np.abs(found.weight[0] - np.eye(D)).max() > 1e-3 < np.abs(found.bias[0]).max()


def test_losses_fall_and_one_program_is_compiled(llama, tokens):
    before = models.traces("train_lens")
    batches = itertools.cycle([{"tokens": tokens}, {"tokens": tokens[::-1]}])
    through, losses = readouts.train_lens(llama, batches, optimizer=ADAM, steps=60)
    assert models.traces("train_lens") == before + 1
    assert losses.shape == (60, N) and np.isfinite(losses).all()
    assert (losses[-1, :-1] < losses[0, :-1] / 2).all() and losses[-1, -1] < 0.01
    assert through.weight.shape == (N, D, D) and through.bias.shape == (N, D)
    # The maps that are returned are those that the losses are of.
    tuned = readouts.logit_lens(llama, tokens, through=through, kl=True).kl.mean((1, 2))
    np.testing.assert_allclose(tuned, losses[-1], rtol=0.2, atol=0.01)


def test_padding_is_ignored(llama, tokens):
    other = np.where(PADDED < 0, 7, tokens).astype(np.int32)
    assert (other != tokens).any()
    same = [
        readouts.train_lens(
            llama, [{"tokens": ids, "sequences": PADDED}] * 2, optimizer=SGD, steps=2
        )
        for ids in (tokens, other)
    ]
    jax.tree.map(np.testing.assert_array_equal, *same)
    none = np.full_like(PADDED, -1)
    empty = {"tokens": tokens, "sequences": none}
    found, losses = readouts.train_lens(llama, [empty], optimizer=SGD, steps=1)
    jax.tree.map(np.testing.assert_array_equal, found, _identity())
    np.testing.assert_array_equal(losses, 0)


def test_what_the_text_pipeline_yields_is_a_batch(gpt2, tokens):
    zeros = np.zeros_like(tokens)
    places = np.broadcast_to(np.arange(6, dtype=np.int32), (2, 6))
    batch = TokenBatch(tokens, zeros, PADDED, places, zeros)
    found, _ = readouts.train_lens(gpt2, [batch], optimizer=SGD, steps=1)
    given = {"tokens": tokens, "sequences": PADDED, "positions": places}
    expected, _ = readouts.train_lens(gpt2, [given], optimizer=SGD, steps=1)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_logits_of_all_layers_are_never_there_together(llama, tokens):
    now = jax.tree.map(jnp.zeros_like, _identity())
    text = _tuned_lens._step.lower(
        now, SGD.init(now), llama, {"tokens": tokens}, site=SITE, optimizer=SGD
    ).as_text()
    assert "2x6x26xf32" in text and "3x2x6x26" not in text


def test_what_cannot_be_trained_on_is_said(llama, tokens):
    batch = {"tokens": tokens}

    def train(*batches, lm=llama, steps=1, **more):
        readouts.train_lens(lm, batches, optimizer=SGD, steps=steps, **more)

    before = models.traces()
    for site, says in (
        ("blocks.*.attn.z", "as wide as the residual stream"),
        ("blocks.1.resid_post", "fitted to all layers"),
        ("blocks.*.resid_pots", "no site"),
    ):
        with pytest.raises(JaxdiffError, match=says):
            train(batch, site=site)
    with pytest.raises(JaxdiffError, match=r"not ndarray[\s\S]*\[\{'tokens': ids\}\]"):
        train(tokens)
    with pytest.raises(JaxdiffError, match="integer array"):
        train({"tokens": tokens.astype(np.float32)})
    with pytest.raises(JaxdiffError, match=r"tokens \[2, 6\], not \[2, 5\]"):
        train(batch | {"sequences": PADDED[:, 1:]})
    assert models.traces() == before
    with pytest.raises(JaxdiffError, match="1 batches for 2 steps"):
        train(batch, steps=2)
    broken = jax.tree.map(lambda x: x * jnp.nan, llama)
    with pytest.raises(JaxdiffError, match="not finite from step 0 on"):
        train(batch, lm=broken)
