"""Every op against the same in float64 NumPy, on values that come from no model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.edits import (
    Add,
    Clamp,
    FromRow,
    FromWorld,
    Lerp,
    LowRank,
    Noise,
    Patch,
    PerLayer,
    Scale,
    Set,
    ToMean,
    edit,
)
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import run

B, T, D = 3, 5, 8
STREAM = ("B", "T", D)


@pytest.fixture
def x(rng):
    return rng.normal(size=(B, T, D))


def _close(found, expected, dtype=np.float32):
    assert found.dtype == jnp.dtype(dtype)
    tolerance = 1e-6 if dtype == np.float32 else 2e-2
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, tolerance, tolerance)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(), (D,), (T, 1), (B, 1, D), (B, T, D)])
def test_pointwise_ops(x, rng, somewhere, shape, dtype):
    at, a = somewhere(STREAM), rng.normal(size=shape)
    b = rng.normal(size=shape)
    value = jnp.asarray(x, dtype)
    cases = [
        (Set(a), np.broadcast_to(a, x.shape)),
        (Add(a), x + a),
        (Add(a, strength=b), x + b * a),
        (Add(a, 2.5), x + 2.5 * a),
        (Scale(a), x * a),
        (Lerp(a, 0.25), 0.75 * x + 0.25 * a),
        (Lerp(a, b), (1 - b) * x + b * a),
        (Clamp(low=a), np.maximum(x, a)),
        (Clamp(high=a), np.minimum(x, a)),
        (Clamp(a - 0.5, a + 0.5), np.clip(x, a - 0.5, a + 0.5)),
    ]
    for op, expected in cases:
        _close(op(value, at), expected, dtype)
    assert np.array_equal(Clamp()(value, at), value)


def test_low_rank(x, rng, somewhere):
    down, up = rng.normal(size=(2, D)), rng.normal(size=(D, 2))
    _close(
        LowRank(down, up, 0.5)(jnp.asarray(x, jnp.float32), somewhere(STREAM)),
        x + 0.5 * x @ down.T @ up.T,
    )


def test_to_mean_counts_no_padding(x, somewhere):
    value = jnp.asarray(x, jnp.float32)
    everywhere = ToMean()(value, somewhere(STREAM))
    _close(everywhere, np.broadcast_to(x.mean(1, keepdims=True), x.shape))
    sequences = np.array([[0, 0, 0, -1, -1], [-1, 0, 1, 1, 1], [-1] * 5])
    found = ToMean()(value, somewhere(STREAM, sequences=sequences))
    expected = [x[0, :3].mean(0), x[1, 1:].mean(0), np.zeros(D)]
    _close(found, np.broadcast_to(np.array(expected)[:, None], x.shape))
    scores = x.reshape(B, 2, T, 4)
    found = ToMean()(jnp.asarray(scores, jnp.float32), somewhere(("B", 2, "T", "S")))
    _close(found, np.broadcast_to(scores.mean(2, keepdims=True), scores.shape))


def test_noise_is_normal_and_another_one_everywhere(somewhere):
    key, zeros = jax.random.key(1), jnp.zeros((4, 64, D))
    axes = ("B", "T", D)

    def noise(layer, value=zeros, first=0, axes=axes):
        positions = first + np.arange(value.shape[axes.index("T")])[None]
        at = somewhere(axes, positions=positions, layer=layer)
        return np.asarray(Noise(key, 2.0)(value, at))

    found = noise(0)
    assert abs(found.mean()) < 0.1 and abs(found.std() - 2) < 0.1
    flat = np.concatenate([found, noise(1), noise(2)]).reshape(-1, D)
    assert len(np.unique(flat[:, 0])) == len(flat)
    np.testing.assert_array_equal(noise(0), found)
    # Neither the number of rows nor the number of columns that run at once matters.
    np.testing.assert_array_equal(noise(0, zeros[:2, 3:9], first=3), found[:2, 3:9])
    scores = noise(None, jnp.zeros((2, 3, T, T)), axes=("B", 3, "T", "S"))
    assert scores.shape == (2, 3, T, T) and len(np.unique(scores)) == scores.size


def _patched(x, source, positions, at):
    out = x.copy()
    for b in range(B):
        for t in range(x.shape[1]):
            where = at[b % len(at)][t]
            if 0 <= where < len(positions):
                out[b, t] = source[b % len(source), positions[where]]
    return out


@pytest.mark.parametrize("rows", [1, B])
@pytest.mark.parametrize("length", [2, T, 9])
def test_patch(rng, somewhere, rows, length):
    x, source = rng.normal(size=(B, T, 2, 4)), rng.normal(size=(rows, length, 2, 4))
    value, axes = jnp.asarray(x, jnp.float32), ("B", "T", 2, 4)
    places = ([[0, 1, 2, 3, 4]], [[5, 6, 7, 8, 9]], [[0, 1, 0, 1, 2], [4, 3, 2, 1, 0], [-1] * 5])
    for at in places:
        here = somewhere(axes, positions=at)
        _close(Patch(source)(value, here), _patched(x, source, range(length), at))
        taken = [1, 0, 1]
        _close(Patch(source, taken)(value, here), _patched(x, source, taken, at))


def test_from_row(x, somewhere):
    value, at = jnp.asarray(x, jnp.float32), somewhere(STREAM)
    for row in (1, [2, 0, 0], -1):
        _close(FromRow(row)(value, at), x[np.broadcast_to(row, B)])


def test_from_world(x, rng, somewhere):
    value = jnp.asarray(x, jnp.float32)
    others = rng.normal(size=(2, *x.shape))
    wide = rng.normal(size=(B, T, 6))
    weight, bias = rng.normal(size=(D, 6)), rng.normal(size=D)
    at = somewhere(STREAM, others=tuple(jnp.asarray(o, jnp.float32) for o in (*others, wide)))
    _close(FromWorld()(value, at), others[0])
    _close(FromWorld(world=1)(value, at), others[1])
    _close(FromWorld(2, weight, bias)(value, at), wide @ weight.T + bias)
    with pytest.raises(TypeError, match="no world 3"):
        FromWorld(world=3)(value, at)
    with pytest.raises(TypeError, match=r"\[3, 5, 6\]"):
        FromWorld(world=2)(value, at)


def test_per_layer(x, rng, somewhere):
    vectors, value = rng.normal(size=(3, D)), jnp.asarray(x, jnp.float32)
    for layer in (0, 2, jnp.int32(1)):
        at = somewhere(STREAM, layer=layer)
        _close(PerLayer(Add(vectors, 2.0))(value, at), x + 2 * vectors[int(layer)])
    with pytest.raises(TypeError, match="2 layers, the model has 3"):
        PerLayer(Add(vectors[:2]))(value, somewhere(STREAM, layer=0))
    with pytest.raises(TypeError, match="outside of the blocks"):
        PerLayer(Add(vectors))(value, somewhere(STREAM))


@pytest.mark.parametrize(
    ("site", "op", "says"),
    [
        ("blocks.1.resid_post", Add(np.ones(5)), r"\[3, 5, 8\] \(B, T, 8\)"),
        ("blocks.1.resid_post", Set(np.ones((4, 1, 8))), "shapes \\[4, 1, 8\\]"),
        ("blocks.1.attn.z", Patch(np.ones((1, 5, 8))), r"the source is \[1, 5, 8\]"),
        ("blocks.1.attn.pattern", Patch(np.ones((1, 5, 8))), "use Set"),
        ("blocks.*.resid_mid", PerLayer(Add(np.ones((4, 8)))), "4 layers, the model has 3"),
        ("embed", PerLayer(Add(np.ones((3, 8)))), "no layer"),
        ("embed", FromWorld(), "no world 0"),
        ("embed", FromRow(3), "outside of the batch: 3"),
        ("embed", LowRank(np.ones((2, 4)), np.ones((8, 2))), "float32"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_shapes(llama, tokens, site, op, says):
    with pytest.raises(JaxdiffError, match=says) as error:
        run(llama, tokens, edits=(edit(site, op),))
    assert error.value.where == site
