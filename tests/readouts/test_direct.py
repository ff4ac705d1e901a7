import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import edits, models, readouts
from jaxdiff.errors import JaxdiffError

_spec = importlib.util.spec_from_file_location("_float64", Path(__file__).parent / "_float64.py")
_float64 = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_float64)

RIGHT, WRONG = np.array([3, 11]), np.array([8, 0])


def _uncapped(lm, logits):
    cap = lm.spec.logit_softcap
    logits = np.asarray(logits, np.float64)
    return logits if cap is None else cap * np.arctanh(logits / cap)


def test_parts_sum_to_the_logits_at_every_position(lm, tokens):
    logits = _uncapped(lm, models.run(lm, tokens)[0])
    found = readouts.direct_logit_attribution(lm, tokens, RIGHT, WRONG)
    assert found.values.shape == (len(found.names), 2, 6)
    expected = np.stack([logits[b, :, RIGHT[b]] - logits[b, :, WRONG[b]] for b in range(2)])
    np.testing.assert_allclose(found.total, expected, rtol=1e-4, atol=1e-4)
    # No sum by chance: each of the parts matters.
    assert (np.abs(found.values).max((1, 2)) > 1e-4).all()


def test_each_part_is_that_of_float64(lm, tokens):
    """From tapped values, with the scale of the tapped stream."""
    spec, w = lm.spec, lm.params["blocks"]
    sites = ["embed", "blocks.*.attn_out", "blocks.*.attn.z", "blocks.*.mlp_out"]
    sites += ["blocks.2.resid_post"] + ["blocks.*.attn.out"] * spec.post_norms
    kept = {
        n: np.asarray(v, np.float64) for n, v in models.run(lm, tokens, tuple(sites))[1].items()
    }
    stream = kept["blocks.2.resid_post"]
    centred = stream - stream.mean(-1, keepdims=True) if spec.norm == "layer" else stream
    scale = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + spec.norm_eps)
    unembed = _float64.unembedding(lm)
    u = (unembed[RIGHT] - unembed[WRONG])[:, None]
    found = readouts.direct_logit_attribution(lm, tokens, RIGHT, WRONG)

    def measured(part):
        return (_float64.final_norm(lm, part, scale=scale) * u).sum(-1)

    np.testing.assert_allclose(found["embed"][0], measured(kept["embed"]), rtol=1e-3, atol=1e-4)
    o = {name: np.asarray(leaf, np.float64) for name, leaf in w["attn"]["o"].items()}
    for i in range(3):
        mlp = measured(kept["blocks.*.mlp_out"][i])
        np.testing.assert_allclose(found[f"blocks.{i}.mlp_out"][0], mlp, rtol=1e-3, atol=1e-4)
        weight = o["weight"][i]
        weight = weight + o["lora_b"][i] @ o["lora_a"][i] if "lora_a" in o else weight
        heads = [
            kept["blocks.*.attn.z"][i][:, :, h] @ np.split(weight, spec.n_heads, 1)[h].T
            for h in range(spec.n_heads)
        ]
        if spec.post_norms:
            raw = kept["blocks.*.attn.out"][i]
            rms = np.sqrt((raw**2).mean(-1, keepdims=True) + spec.norm_eps)
            gain = np.asarray(w["attn_post_norm"]["weight"][i], np.float64) + spec.norm_offset
            heads = [head / rms * gain for head in heads]
        got = found[f"blocks.{i}.attn.z.*"]
        np.testing.assert_allclose(got, [measured(x) for x in heads], rtol=1e-3, atol=1e-4)
        if "bias" in o:
            bias = np.broadcast_to(o["bias"][i], stream.shape)
            got = found[f"blocks.{i}.attn.bias"][0]
            np.testing.assert_allclose(got, measured(bias), rtol=1e-3, atol=1e-4)


def test_the_stream_is_the_sum_and_norming_makes_logits(lm, tokens):
    logits, kept = models.run(lm, tokens, ("blocks.*.resid_post", "blocks.*.attn_out"))
    parts = readouts.decompose(lm, tokens, heads=True)
    stream = kept["blocks.*.resid_post"]
    np.testing.assert_allclose(parts.total, stream[-1], rtol=1e-4, atol=1e-4)
    ends = parts.accumulated()["blocks.*.mlp_out"]
    np.testing.assert_allclose(ends, stream, rtol=1e-4, atol=1e-4)
    for i in range(3):
        attn = jnp.sum(parts[f"blocks.{i}.attn.*"], axis=0)
        np.testing.assert_allclose(attn, kept["blocks.*.attn_out"][i], rtol=1e-4, atol=1e-4)
    normed = readouts.decompose(lm, tokens, normed=True)
    assert normed.names[1 + (lm.spec.rope is None)] == "blocks.0.attn_out"
    total = np.asarray(normed.total, np.float64) @ _float64.unembedding(lm).T
    np.testing.assert_allclose(total, _uncapped(lm, logits), rtol=1e-3, atol=2e-4)


def test_positions_tokens_and_padding(gpt2, tokens):
    sequences = np.array([[0] * 6, [1, 1, 1, 1, -1, -1]], np.int32)
    logits = np.asarray(models.run(gpt2, tokens, sequences=sequences)[0])
    ask = dict(sequences=sequences, heads=False)
    last = readouts.direct_logit_attribution(gpt2, tokens, RIGHT, positions=-1, **ask)
    expected = [logits[0, 5, 3], logits[1, 3, 11]]
    assert last.values.shape == (len(last.names), 2)
    np.testing.assert_allclose(last.total, expected, rtol=1e-4, atol=1e-4)
    ids = np.array([[1, 2], [3, 4]])
    some = readouts.direct_logit_attribution(gpt2, tokens, ids, 7, positions=[0, -1], **ask)
    expected = [
        [logits[0, 0, 1] - logits[0, 0, 7], logits[0, 5, 2] - logits[0, 5, 7]],
        [logits[1, 0, 3] - logits[1, 0, 7], logits[1, 3, 4] - logits[1, 3, 7]],
    ]
    np.testing.assert_allclose(some.total, expected, rtol=1e-4, atol=1e-4)
    parts = readouts.decompose(gpt2, tokens, heads=True, positions=-1, sequences=sequences)
    assert parts.values.shape == (len(parts.names), 2, 16)
    stream = models.run(gpt2, tokens, ("blocks.2.resid_post",), sequences=sequences)[1]
    stream = np.asarray(stream["blocks.2.resid_post"])
    np.testing.assert_allclose(parts.total, [stream[0, 5], stream[1, 3]], rtol=1e-4, atol=1e-4)


def test_edits_of_the_stream_are_a_part(gpt2, tokens):
    vector = np.linspace(-1, 1, 16, dtype=np.float32)
    steer = edits.edit("blocks.1.resid_post", edits.Add(vector), positions=2)
    mute = edits.edit("blocks.*.attn.z", edits.Set(0.0), layers=1, heads=3)
    parts = readouts.decompose(gpt2, tokens, heads=True, edits=(steer, mute))
    expected = np.zeros((2, 6, 16), np.float32)
    expected[:, 2] = vector
    np.testing.assert_allclose(parts["edits"][0], expected, atol=1e-4)
    np.testing.assert_array_equal(parts["blocks.1.attn.z.3"], 0)
    logits = models.run(gpt2, tokens, (), (steer, mute))[0]
    found = readouts.direct_logit_attribution(gpt2, tokens, 4, edits=(steer, mute))
    np.testing.assert_allclose(found.total, logits[..., 4], rtol=1e-4, atol=1e-4)


def test_other_leaves_compile_nothing_and_weights_may_be_apart(gemma2, tokens):
    joined = readouts.direct_logit_attribution(gemma2, tokens, 3, 8)
    before = models.traces("direct_logit_attribution")
    readouts.direct_logit_attribution(gemma2, tokens, 4, 1)
    assert models.traces("direct_logit_attribution") == before
    apart = readouts.direct_logit_attribution(models.unstack(gemma2), tokens, 3, 8)
    assert apart.names == joined.names
    np.testing.assert_allclose(apart.values, joined.values, rtol=1e-4, atol=1e-5)


def test_heads_are_measured_without_being_kept(llama, tokens):
    text = (
        jax.jit(lambda lm: readouts.direct_logit_attribution(lm, tokens, 3)).lower(llama).as_text()
    )
    assert "2x6x4x16" not in text and "2x6x4x4" in text


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (dict(right=26), "no token 26"),
        (dict(right=1, wrong=[-1, 2]), "no token -1"),
        (dict(right=1, positions=8), "position 8"),
        (dict(right=1, edits=(edits.edit("blocks.1", edits.Skip()),)), "skipped"),
        (dict(right=1, edits=(edits.edit("logits", edits.Set(0.0)),)), "logits"),
    ],
)
def test_what_does_not_fit_is_refused(llama, tokens, asked, says):
    with pytest.raises(JaxdiffError, match=says):
        readouts.direct_logit_attribution(llama, tokens, **asked)


def test_a_glob_that_matches_nothing_is_refused(llama, tokens):
    parts = readouts.decompose(llama, tokens)
    with pytest.raises(JaxdiffError, match="no part matches 'blocks.9"):
        parts["blocks.9.*"]
