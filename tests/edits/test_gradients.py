"""Derivatives through edits, against finite differences and by definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.dictionaries import Dictionary
from jaxdiff.edits import (
    Add,
    Backward,
    Latents,
    Lerp,
    LowRank,
    Patch,
    PerLayer,
    Scale,
    Set,
    Subspace,
    edit,
)
from jaxdiff.models import run

QUICK = {"xla_backend_optimization_level": 0}
D, N = 8, 3


def _leaves():
    rng = np.random.default_rng(0)
    shapes = {
        "vector": (D,),
        "strength": (),
        "to": (D,),
        "weight": (),
        "by": (2, 1),
        "down": (2, D),
        "up": (D, 2),
        "source": (1, 3, D),
        "layers": (N, D),
        "vectors": (D, 2),
        "coordinates": (2,),
        "latents": (2,),
        "encoder": (1, D, 5),
        "decoder": (5, 1, D),
    }
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def _edits(p):
    # No latent is near 0, where finite differences would see the kink.
    dictionary = Dictionary(
        *(p["encoder"], jnp.full(5, 8.0), p["decoder"], jnp.zeros((1, D)), jnp.zeros(())),
        activation="relu",
        k=2.0,
        code_norm="none",
    )
    return (
        edit("blocks.0.resid_pre", Add(p["vector"], p["strength"]), positions=[1, -1]),
        edit("blocks.*.attn_out", PerLayer(Add(p["layers"])), layers=[0, 2]),
        edit("blocks.1.resid_mid", Lerp(p["to"], p["weight"]), rows=[0, 1]),
        edit("blocks.1.attn.z", Scale(p["by"])),
        edit("blocks.1.mlp_out", LowRank(p["down"], p["up"])),
        edit("blocks.1.resid_post", Patch(p["source"]), rows=2),
        edit("blocks.2.resid_pre", Set(p["coordinates"]), view=Subspace(p["vectors"]), rows=[0, 1]),
        edit(
            "blocks.2.mlp_out",
            Scale(p["latents"]),
            view=Latents(dictionary, np.array([1, 4]), normalization=None),
        ),
    )


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_against_finite_differences(model, tokens, name):
    lm, p = model(name), jax.tree.map(jnp.asarray, _leaves())

    def loss(p, lm, edits=_edits):
        logits, _ = run(lm, tokens, edits=edits(p))
        return jnp.mean(jnp.square(jax.nn.log_softmax(logits)[..., :4]))

    program = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)
    (value, gradient), rng = program(p, lm), np.random.default_rng(1)
    for leaf in p:
        step = rng.choice([-1.0, 1.0], np.shape(p[leaf])).astype(np.float32)
        ends = [program({**p, leaf: p[leaf] + np.float32(e) * step}, lm)[0] for e in (2e-3, -2e-3)]
        slope, found = (ends[0] - ends[1]) / 4e-3, np.sum(gradient[leaf] * step)
        assert abs(slope) > 1e-3 * value, leaf
        np.testing.assert_allclose(found, slope, rtol=1e-2, atol=2e-4 * value, err_msg=leaf)


def test_forward_and_reverse_agree(llama, tokens):
    """One forward pass gives the change of all sites along a direction of all leaves."""
    p = jax.tree.map(jnp.asarray, _leaves())
    rng = np.random.default_rng(2)
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), p)

    def stream(p):
        return run(llama, tokens, ("blocks.*.resid_post",), _edits(p), logits=False)[1]

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(p, direction, weights):
        _, change = jax.jvp(stream, (p,), (direction,))
        _, back = jax.vjp(stream, p)
        return change, back(weights)[0]

    weights = {"blocks.*.resid_post": jnp.asarray(rng.normal(size=(N, 3, 5, D)), jnp.float32)}
    change, gradient = both(p, direction, weights)
    site = "blocks.*.resid_post"
    one = np.sum(np.asarray(change[site]) * np.asarray(weights[site]))
    products = jax.tree.map(lambda a, b: np.sum(np.asarray(a) * np.asarray(b)), gradient, direction)
    np.testing.assert_allclose(one, sum(jax.tree.leaves(products)), rtol=1e-4)


def test_gradients_are_edited_on_their_way_back(llama, tokens):
    """A factor on the gradient of a branch, and none through a stop, as by hand."""

    def loss(vector, *edits):
        first = edit("blocks.0.resid_post", Add(vector))
        return jnp.sum(jnp.square(run(llama, tokens, edits=(first, *edits))[0]))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def all_of_them(vector):
        whole, half, none, tail, late = (
            (),
            (edit("blocks.0.resid_post", Backward(Scale(0.5))),),
            (edit("blocks.2.resid_post", Backward(Set(0.0))),),
            (edit("blocks.1.resid_pre", Backward(Set(0.0)), positions=[0, 1, 2]),),
            (edit("blocks.1.resid_pre", Backward(Set(0.0)), positions=[3, 4]),),
        )
        return [jax.value_and_grad(loss)(vector, *each) for each in (whole, half, none, tail, late)]

    (values, gradients) = zip(*all_of_them(jnp.ones(D)), strict=True)
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
    whole, half, none, tail, late = map(np.asarray, gradients)
    # The edit comes after the vector is added: what it lets through is what the vector gets.
    np.testing.assert_allclose(half, 0.5 * whole, rtol=1e-4)
    np.testing.assert_array_equal(none, 0)
    np.testing.assert_allclose(tail + late, whole, rtol=1e-3, atol=1e-3)
    assert np.abs(tail).max() > 1e-3 and np.abs(late).max() > 1e-3
