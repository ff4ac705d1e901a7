"""The laws of views, and subspaces and latents against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.dictionaries import Dictionary, Normalization, fold
from jaxdiff.edits import (
    Add,
    FromRow,
    Heads,
    Latents,
    Reconstruct,
    Scale,
    Set,
    Subspace,
    edit,
    orthonormal,
)
from jaxdiff.edits.latents import select
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import run

B, T, D, L = 3, 5, 8, 12
STREAM = ("B", "T", D)


@pytest.fixture
def x(rng):
    return rng.normal(size=(B, T, D)).astype(np.float32)


def _dictionary(rng, models=1, *, activation="relu", code_norm="crosscoder", k=3.0):
    shape = {"jumprelu": (L, models)} if code_norm == "decoupled" else {"jumprelu": (L,)}
    shape["batch_topk"] = (models,) if code_norm == "decoupled" else ()

    def array(*shape):
        return jnp.asarray(rng.normal(0, 0.5, shape), jnp.float32)

    return Dictionary(
        W_enc=array(models, D, L),
        b_enc=array(L),
        W_dec=array(L, models, D),
        b_dec=array(models, D),
        threshold=jnp.abs(array(*shape.get(activation, ()))) + 0.1,
        activation=activation,
        k=k,
        code_norm=code_norm,
    )


def _codes(d, sources, space, model):
    """Values of the latents in float64, written from the definitions of the rules."""
    x = np.stack([np.asarray(s, np.float64).reshape(-1, D) for s in sources], 1)
    if space is not None:
        x = (x - space.mean[None]) * space.scale[None, :, None]
    W_enc, W_dec, b_enc = (np.asarray(a, np.float64) for a in (d.W_enc, d.W_dec, d.b_enc))
    f = np.maximum(np.einsum("rmd,mdl->rl", x, W_enc) + b_enc, 0)
    norms = np.linalg.norm(W_dec, axis=-1)
    keys = f * (norms[:, model] if d.code_norm == "decoupled" else norms.sum(-1))
    threshold = np.asarray(d.threshold)
    if d.activation == "jumprelu":
        keep = f > (threshold[:, model] if d.code_norm == "decoupled" else threshold)
    elif d.activation == "batch_topk":
        keep = keys > (threshold[model] if d.code_norm == "decoupled" else threshold)
    elif d.activation == "topk":
        keep = keys >= np.sort(keys, axis=-1)[:, -round(d.k)][:, None]
    else:
        keep = np.ones_like(f, bool)
    return np.where(keep, f, 0)


VIEWS = {
    "heads": lambda rng: Heads(2),
    "line": lambda rng: Subspace(rng.normal(size=(D, 1))),
    "subspace": lambda rng: Subspace(rng.normal(size=(D, 3))),
    "complement": lambda rng: Subspace(rng.normal(size=(D, 3)), complement=True),
    "all": lambda rng: Subspace(rng.normal(size=(D, D))),
    "latents": lambda rng: Latents(_dictionary(rng), normalization=None),
    "some": lambda rng: Latents(_dictionary(rng), [1, 5], normalization=None),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_put_back_as_it_was_changes_no_bit(x, rng, somewhere, name, dtype):
    view, at, value = VIEWS[name](rng), somewhere(STREAM), jnp.asarray(x, dtype)
    found = view.put(value, view.get(value, at), at)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("name", ["heads", "line", "subspace", "complement", "all"])
def test_what_was_put_is_seen_and_the_last_put_counts(x, rng, somewhere, name):
    view, at, value = VIEWS[name](rng), somewhere(STREAM), jnp.asarray(x)
    seen = view.get(value, at)
    one, two = (jnp.asarray(rng.normal(size=seen.shape), jnp.float32) for _ in range(2))
    if name == "complement":
        one, two = (view.get(each, at) for each in (one, two))
    put = view.put(value, one, at)
    np.testing.assert_allclose(view.get(put, at), one, rtol=1e-5, atol=1e-5)
    again = view.put(put, two, at)
    np.testing.assert_allclose(again, view.put(value, two, at), rtol=1e-5, atol=1e-5)


def test_heads(x, somewhere):
    at = somewhere(STREAM)
    np.testing.assert_array_equal(Heads(4).get(jnp.asarray(x), at), x.reshape(B, T, 4, 2))
    change = edit("embed", Scale(np.array([[1.0], [0.0]], np.float32)), view=Heads(2))
    expected = np.concatenate([x[..., :4], np.zeros_like(x[..., 4:])], -1)
    np.testing.assert_array_equal(change(jnp.asarray(x), at), expected)


@pytest.mark.parametrize("k", [1, 3, D])
def test_the_basis_is_that_of_gram_and_schmidt(rng, k):
    vectors = rng.normal(size=(D, k))
    expected = np.zeros((D, k))
    for i in range(k):
        left = vectors[:, i] - expected[:, :i] @ (expected[:, :i].T @ vectors[:, i])
        expected[:, i] = left / np.linalg.norm(left)
    np.testing.assert_allclose(orthonormal(vectors), expected, atol=1e-5)
    np.testing.assert_allclose(orthonormal(1e-3 * vectors), expected, atol=1e-5)


def test_dependent_columns_span_no_more(rng):
    vectors = rng.normal(size=(D, 3)).astype(np.float32)
    vectors[:, 1] = -2 * vectors[:, 0]
    basis = np.asarray(orthonormal(vectors))
    np.testing.assert_array_equal(basis[:, 1], 0)
    np.testing.assert_allclose(basis.T @ basis, np.diag([1, 0, 1]), atol=1e-5)
    np.testing.assert_array_equal(orthonormal(np.zeros((D, 2), np.float32)), 0)


def test_projections_and_interchange(x, rng, somewhere):
    vectors, at, value = rng.normal(size=(D, 3)), somewhere(STREAM), jnp.asarray(x)
    projector = vectors @ np.linalg.solve(vectors.T @ vectors, vectors.T)
    inside, outside = x @ projector, x - x @ projector
    view, rest = Subspace(vectors), Subspace(vectors, complement=True)
    source = [1, 2, 0]
    for op, seen, expected in (
        (Set(0.0), view, outside),
        (Set(0.0), rest, inside),
        (Scale(2.0), view, x + inside),
        (Scale(2.0), rest, x + outside),
        (FromRow(source), view, outside + inside[source]),
        (FromRow(source), rest, inside + outside[source]),
    ):
        found = edit("embed", op, view=seen)(value, at)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    line = Subspace(vectors[:, :1])
    direction = vectors[:, 0] / np.linalg.norm(vectors[:, 0])
    np.testing.assert_allclose(line.get(value, at)[..., 0], x @ direction, rtol=1e-4, atol=1e-5)
    found = edit("embed", Set(1.5), view=line)(value, at)
    np.testing.assert_allclose(found @ direction, np.full((B, T), 1.5), rtol=1e-4)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def _every(views, whole, value, at):
    """What the views see, and the value after each change of it, in one program."""
    seen = [view.get(value, at) for view in views]
    ops = (Set(0.0), Set(2.0), Scale(3.0), Add(0.5))
    changed = [[edit("embed", op, view=view)(value, at) for op in ops] for view in views]
    return seen, changed, whole(value, at)


@pytest.mark.parametrize(
    ("activation", "code_norm", "models", "normalised"),
    [
        ("relu", "crosscoder", 1, True),
        ("relu", "decoupled", 2, False),
        ("topk", "crosscoder", 2, True),
        ("topk", "decoupled", 1, False),
        ("batch_topk", "crosscoder", 2, False),
        ("batch_topk", "decoupled", 2, True),
        ("jumprelu", "crosscoder", 1, True),
        ("jumprelu", "decoupled", 2, True),
    ],
)
def test_latents(x, rng, somewhere, activation, code_norm, models, normalised):
    d = _dictionary(rng, models, activation=activation, code_norm=code_norm)
    others = tuple(rng.normal(size=x.shape).astype(np.float32) for _ in range(models - 1))
    at = somewhere(STREAM, others=tuple(map(jnp.asarray, others)))
    space = Normalization(
        rng.normal(size=(models, D)).astype(np.float32),
        rng.uniform(0.5, 2, models).astype(np.float32),
    )
    space = space if normalised else None
    scale = 1.0 if space is None else space.scale[-1]
    f = _codes(d, (*others, x), space, models - 1).reshape(B, T, L)
    assert 0.02 < (f > 0).mean() < 0.9
    rows = np.asarray(d.W_dec)[:, -1]

    choices = (list(range(L)), [4], [7, 0, 2])
    views = [Latents(d, None if len(c) == L else c, normalization=space) for c in choices]
    whole = Reconstruct(d, normalization=space)
    seen, changed, reconstruction = _every(views, whole, jnp.asarray(x), at)
    for numbers, values, results in zip(choices, seen, changed, strict=True):
        own = f[..., numbers]
        np.testing.assert_allclose(values, own, rtol=1e-4, atol=1e-5)
        # What is set to 0 leaves the error, and the bias, in the value.
        for found, change in zip(results, (-own, 2 - own, 2 * own, 0 * own + 0.5), strict=True):
            expected = x + change @ rows[numbers] / scale
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
    mean = 0.0 if space is None else space.mean[-1]
    expected = (f @ rows + np.asarray(d.b_dec)[-1]) / scale + mean
    np.testing.assert_allclose(reconstruction, expected, rtol=1e-4, atol=2e-5)


def test_a_folded_dictionary_needs_no_normalisation(x, rng, somewhere):
    d, at = _dictionary(rng, activation="batch_topk"), somewhere(STREAM)
    space = Normalization(np.full((1, D), 0.3, np.float32), np.full(1, 1.7, np.float32))
    raw = fold(d, jnp.asarray(space.mean), jnp.asarray(space.scale))
    for change in (Set(0.0), Scale(2.0)):
        one = edit("embed", change, view=Latents(d, normalization=space))(jnp.asarray(x), at)
        two = edit("embed", change, view=Latents(raw, normalization=None))(jnp.asarray(x), at)
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    plain = Latents(d, normalization=None).get(jnp.asarray(x), at)
    assert np.abs(plain - Latents(d, normalization=space).get(jnp.asarray(x), at)).max() > 0.1


def test_normalisation_has_to_be_said(rng):
    for kind in (Latents, Reconstruct):
        with pytest.raises(TypeError, match="normalization"):
            kind(_dictionary(rng))


def _flops(f, at):
    return (
        jax.jit(lambda x: f(x, at)).lower(jnp.zeros((B, T, D))).compile().cost_analysis()["flops"]
    )


def test_only_selected_latents_are_encoded(rng, somewhere):
    view = Latents(_dictionary(rng), jnp.array([2]), normalization=None)
    assert _flops(view.get, somewhere(STREAM)) < 2 * B * T * D * 3
    assert select(view.dictionary, [3, 3]).W_dec.shape == (2, 1, D)


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_latents_are_encoded_once(rng, somewhere, activation):
    """`put` sees the value again; the compiler must not compute it again."""
    view, at = (
        Latents(_dictionary(rng, activation=activation), normalization=None),
        somewhere(STREAM),
    )
    change = edit("embed", Scale(0.5), view=view)
    seen, encode = _flops(view.get, at), 2 * B * T * D * L
    assert encode <= seen and _flops(change, at) - seen < 1.5 * encode


def test_a_dictionary_of_another_width_or_number_of_models_is_refused(llama, tokens, rng):
    two = Latents(_dictionary(rng, 2), normalization=None)
    with pytest.raises(JaxdiffError, match="reads 2 models of width 8, here are 1 of width 8"):
        run(llama, tokens, edits=(edit("blocks.1.resid_post", Set(0.0), view=two),))
    one = Latents(_dictionary(rng), normalization=None)
    with pytest.raises(JaxdiffError, match="here are 1 of width 12"):
        run(llama, tokens, edits=(edit("blocks.1.mlp.post", Set(0.0), view=one),))
