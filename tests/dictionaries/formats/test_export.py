"""Every kind of dictionary in every format: written, it is the same, or it is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.dictionaries import (
    Dictionary,
    Normalization,
    decode,
    encode,
    export_dictionary,
    import_dictionary,
)
from jaxdiff.errors import JaxdiffError

WIDTH, LATENTS = 4, 8
# The same kinds come from several formats: each is compiled once.
encoded, decoded = jax.jit(encode), jax.jit(decode)
ACTIVATIONS = ("relu", "topk", "batch_topk", "jumprelu")
NORMS = ("none", "sae", "crosscoder", "mixed", "decoupled")


def _make(activation, code_norm, models):
    rng = np.random.default_rng(len(activation) + 10 * NORMS.index(code_norm) + models)

    def draw(*shape):
        return rng.normal(0, 0.8, shape).astype(np.float32)

    W_dec = draw(LATENTS, models, WIDTH)
    W_dec[2] = 0.0  # A latent that writes nothing, and would be active.
    b_enc = draw(LATENTS)
    b_enc[2] = 5.0
    shape = {"topk": (), "relu": (), "batch_topk": (), "jumprelu": (LATENTS,)}[activation]
    shape += (models,) if code_norm == "decoupled" else ()
    leaves = (draw(models, WIDTH, LATENTS), b_enc, W_dec, draw(models, WIDTH))
    threshold = 0.5 + np.abs(draw(*shape)) if activation != "relu" else np.zeros(shape)
    return Dictionary(
        *map(jnp.asarray, leaves),
        threshold=jnp.asarray(threshold, jnp.float32),
        activation=activation,
        k=3.0,
        code_norm=code_norm,
    )


def _kinds(activations, norms, models):
    return set(itertools.product(activations, norms, models))


# What each format takes; the rest is refused.
ALL_SAES = _kinds(ACTIVATIONS, NORMS, (1,))
COUPLED = NORMS[:-1]
TAKEN = {
    "saelens": ALL_SAES,
    "sparsify": _kinds(("topk",), NORMS, (1,)),
    "llama_scope": _kinds(ACTIVATIONS[:3], NORMS, (1,)),
    "llamascopium": ALL_SAES | _kinds(("relu", "topk"), ("decoupled",), (2,)),
    "gemma_scope": _kinds(("relu", "batch_topk", "jumprelu"), NORMS, (1,)),
    "gemma_scope_2": _kinds(("relu", "batch_topk", "jumprelu"), NORMS, (1,)),
    "kissane": _kinds(("relu",), COUPLED, (1, 2)),
    "crosscode": _kinds(("relu", "batch_topk", "jumprelu"), COUPLED, (1, 2))
    | _kinds(("topk",), ("none",), (1, 2)),
    "dictionary_learning": ALL_SAES,
    "science_of_finetuning": _kinds(("relu", "batch_topk"), NORMS, (1, 2)),
    "openai": _kinds(("relu",), NORMS, (1,)),
}
# These rank by values, with decoders of norm 1: latents come out times their norm.
SCALED = {("saelens", "topk"), ("sparsify", "topk"), ("dictionary_learning", "topk")}
SCALED |= {("dictionary_learning", "batch_topk")}


@pytest.mark.parametrize("format", TAKEN)
def test_every_kind(tmp_path, format):
    x = np.random.default_rng(0).normal(size=(300, 2, WIDTH)).astype(np.float32)
    taken = set()
    for kind in itertools.product(ACTIVATIONS, NORMS, (1, 2)):
        d, folder, rows = _make(*kind), tmp_path / "-".join(map(str, kind)), jnp.asarray(x)
        rows = rows[:, : kind[2]]
        try:
            export_dictionary(d, folder, format)
        except JaxdiffError:
            continue
        taken.add(kind)
        found = import_dictionary(folder).dictionary
        expected, latents = encoded(d, rows), encoded(found, rows)
        np.testing.assert_allclose(decoded(found, latents), decoded(d, expected), atol=1e-4)
        if (format, kind[0]) in SCALED and kind[1] != "none":
            expected = expected * jnp.linalg.norm(d.W_dec[:, 0], axis=-1).reshape(
                (1,) * (expected.ndim - 1) + (-1,)
            )
        if expected.ndim > latents.ndim:
            expected = expected[:, 0]
        np.testing.assert_allclose(latents, expected, atol=1e-5, rtol=1e-5)
    assert taken == TAKEN[format]


CARRIED = ("science_of_finetuning", "llamascopium")


@pytest.mark.parametrize("format", TAKEN)
def test_a_normalisation_is_kept_or_folded(tmp_path, format):
    rng = np.random.default_rng(3)
    kind = ("topk", "none", 1) if format == "sparsify" else ("relu", "sae", 1)
    d, mean = _make(*kind), rng.normal(size=(1, WIDTH)).astype(np.float32)
    x = rng.normal(size=(20, 1, WIDTH)).astype(np.float32)
    for shift, scale in ((mean, 0.3), (np.zeros_like(mean), 0.3)):
        normalization = Normalization(shift, np.array([scale], np.float32))
        export_dictionary(d, tmp_path, format, normalization)
        found = import_dictionary(tmp_path)
        latents = encode(found.dictionary, jnp.asarray(found.normalization.apply(x)))
        expected = encode(d, jnp.asarray(normalization.apply(x)))
        np.testing.assert_allclose(latents, expected, atol=1e-5, rtol=1e-4)
        decoded = found.normalization.invert(decode(found.dictionary, latents))
        np.testing.assert_allclose(
            decoded, normalization.invert(decode(d, expected)), atol=1e-4, rtol=1e-4
        )
        kept = found.normalization.scale != 1
        assert kept == (format in CARRIED and (format != "llamascopium" or not shift.any()))
