"""What taps make of values, against NumPy, inside of models and out of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.dictionaries import Dictionary
from jaxdiff.edits import Chain, Heads, Last, Latents, Mean, Norm, Project, Subspace, TopK
from jaxdiff.models import Tap, run

B, T, D = 3, 5, 8
SEQUENCES = (None, np.array([[0, 0, 0, -1, -1], [-1, 1, 1, 1, 1], [2, 2, 3, 3, 3]]))


def _real(sequences):
    return np.ones((B, T), bool) if sequences is None else sequences >= 0


@pytest.mark.parametrize("sequences", SEQUENCES, ids=["whole", "padded"])
@pytest.mark.parametrize("axes", [("B", "T", D), ("B", "T", 2, 4), ("B", 2, "T", "S")])
def test_over_tokens(rng, somewhere, axes, sequences):
    shape = [{"B": B, "T": T, "S": T}.get(a, a) for a in axes]
    x, at, real = rng.normal(size=shape), somewhere(axes, sequences=sequences), _real(sequences)
    value = jnp.asarray(x, jnp.float32)
    rows = np.moveaxis(x, axes.index("T"), 1)
    last = [np.flatnonzero(row)[-1] for row in real]
    expected = np.stack([row[t] for row, t in zip(rows, last, strict=True)])
    np.testing.assert_array_equal(Last()(value, at), expected.astype(np.float32))
    mean = np.stack([row[own].mean(0) for row, own in zip(rows, real, strict=True)])
    np.testing.assert_allclose(Mean()(value, at), mean, rtol=1e-5, atol=1e-6)
    half = Mean()(value.astype(jnp.bfloat16), at)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, mean, atol=1e-2)


def test_over_the_last_axis(rng, somewhere):
    x, directions = rng.normal(size=(B, T, D)), rng.normal(size=(2, D))
    value, at = jnp.asarray(x, jnp.float32), somewhere(("B", "T", D))
    norms = np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(Norm()(value, at), norms, rtol=1e-5)
    np.testing.assert_allclose(
        Project(directions)(value, at), x @ directions.T, rtol=1e-4, atol=1e-5
    )
    values, places = TopK(3)(value, at)
    np.testing.assert_array_equal(places, np.argsort(-x, axis=-1)[..., :3])
    np.testing.assert_allclose(values, -np.sort(-x, axis=-1)[..., :3], rtol=1e-6)
    both = Chain((Project(directions), Last()))(value, at)
    np.testing.assert_allclose(both, x[:, -1] @ directions.T, rtol=1e-4, atol=1e-5)


def test_inside_a_model(llama, tokens, rng):
    """Reduced in the program, and from what a plain tap keeps."""
    site, every = "blocks.1.resid_post", "blocks.*.attn.z"
    dictionary = Dictionary(
        *(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((1, D, 6), (6,), (6, 1, D))),
        *(jnp.zeros((1, D)), jnp.zeros(())),
        activation="relu",
        k=2.0,
        code_norm="none",
    )
    vectors = rng.normal(size=(D, 2))
    taps = (
        *(site, every),
        Tap(site, view=Latents(dictionary, normalization=None), reduce=TopK(2), name="codes"),
        Tap(every, view=Heads(2), reduce=Chain((Norm(), Last())), name="norms"),
        Tap(site, view=Subspace(vectors), reduce=Mean(), dtype="bfloat16", name="means"),
    )
    found = jax.tree.map(np.asarray, run(llama, tokens, taps, logits=False)[1])
    f = np.maximum(found[site] @ dictionary.W_enc[0] + dictionary.b_enc[None, None], 0)
    values, places = found["codes"]
    np.testing.assert_allclose(values, -np.sort(-f, -1)[..., :2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(f, places, -1), values, rtol=1e-4, atol=1e-5)
    z = found[every]
    assert z.shape == (3, 3, 5, 2, 4)
    norms = np.linalg.norm(z.reshape(3, 3, 5, 2, 2, 2), axis=-1)[:, :, -1]
    np.testing.assert_allclose(found["norms"], norms, rtol=1e-4)
    q = np.linalg.qr(vectors)[0]
    q = q * np.sign(np.sum(q * vectors, 0))[None]
    assert found["means"].dtype == jnp.bfloat16
    first = found[site].mean(1) @ q[:, 0]
    np.testing.assert_allclose(np.asarray(found["means"], np.float32)[:, 0], first, rtol=2e-2)
