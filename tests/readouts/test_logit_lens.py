import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import edits, models, readouts
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import Tap
from jaxdiff.readouts import _logit_lens

_spec = importlib.util.spec_from_file_location("_float64", Path(__file__).parent / "_float64.py")
_float64 = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_float64)

STREAM = ("resid_pre", "attn_out", "mlp_out", "resid_post")


def _same(found, expected):
    for name, wanted in expected.items():
        got = getattr(found, name)
        assert got.shape == wanted.shape, name
        if name in ("tokens", "rank"):
            # Under a soft cap some tokens are as likely as others, to rounding.
            assert np.mean(got == wanted) > 0.98, name
            continue
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5, err_msg=name)


def test_each_number_is_that_of_float64(lm, tokens):
    everything = tuple(f"blocks.*.{part}" for part in STREAM)
    logits, kept = models.run(lm, tokens, everything)
    targets = np.array([[[3, 17, 5]], [[0, 23, 9]]])
    for site in everything if lm.spec.architecture == "gemma2" else everything[-1:]:
        found = readouts.logit_lens(
            lm, tokens, site=site, k=4, targets=targets, kl=True, logits=True
        )
        x = np.asarray(kept[site], np.float64)
        _same(found, _float64.reading(_float64.read(lm, x), 4, targets, logits))


def test_the_last_layer_says_what_the_model_says(lm, tokens):
    logits = models.run(lm, tokens)[0]
    found = readouts.logit_lens(lm, tokens, logits=True, kl=True)
    assert found.logits.shape == (3, 2, 6, 26)
    np.testing.assert_allclose(found.logits[-1], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.kl[-1], 0, atol=1e-5)
    assert (found.kl[0] > 1e-3).any()
    one = readouts.logit_lens(lm, tokens, site="blocks.2.resid_post")
    assert one.log_prob is None and one.logits is None
    np.testing.assert_array_equal(one.tokens, found.tokens[-1])


@pytest.mark.parametrize(
    ("targets", "shape"),
    [
        (np.int32(7), ()),
        (np.array([7, 1]), (2, 1)),
        (np.arange(12).reshape(2, 6), (2, 6)),
    ],
)
def test_targets_of_rows_and_positions(llama, tokens, targets, shape):
    full = readouts.logit_lens(llama, tokens, logits=True).logits
    log_p = np.asarray(jax.nn.log_softmax(full, axis=-1))
    wanted = np.broadcast_to(np.reshape(targets, shape), (3, 2, 6))
    found = readouts.logit_lens(llama, tokens, targets=targets)
    expected = np.take_along_axis(log_p, wanted[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.log_prob, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.rank, (log_p > expected[..., None]).sum(-1))


def test_positions_are_those_of_the_rows_texts(llama, tokens):
    sequences = np.array([[0] * 6, [1, 1, 1, 1, -1, -1]], np.int32)
    full = readouts.logit_lens(llama, tokens, sequences=sequences, k=26, kl=True)
    assert full.kl.shape == (3, 2, 6)

    def at(columns, **kwargs):
        found = readouts.logit_lens(llama, tokens, sequences=sequences, k=26, kl=True, **kwargs)
        for name in ("probabilities", "entropy", "kl"):
            value = np.asarray(getattr(full, name))
            expected = np.stack([value[:, 0, columns[0]], value[:, 1, columns[1]]], 1)
            np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-4, atol=1e-6)

    at((5, 3), positions=-1)
    at(([2, 5], [2, 3]), positions=[2, -1])
    at(([0, 1], [3, 2]), positions=np.array([[0, 1], [3, 2]]))
    beyond = readouts.logit_lens(llama, tokens, sequences=sequences, positions=5)
    assert np.isfinite(beyond.entropy[:, 0]).all() and np.isnan(beyond.entropy[:, 1]).all()


def test_in_pieces_it_is_the_same(gemma2, tokens, monkeypatch):
    targets, ask = np.arange(12).reshape(2, 6), dict(kl=True, k=3)
    for given in (targets[..., None], np.array([3, 4])):
        whole = readouts.logit_lens(gemma2, tokens, targets=given, **ask)
        with monkeypatch.context() as patch:
            patch.setattr(_logit_lens, "_LOGITS_AT_ONCE", 26 * 5)
            jax.clear_caches()
            pieces = readouts.logit_lens(gemma2, tokens, targets=given, **ask)
            jaxpr = str(jax.make_jaxpr(lambda lm: readouts.logit_lens(lm, tokens))(gemma2))
        assert "f32[2,6,26]" not in jaxpr and "f32[5,26]" in jaxpr
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), whole, pieces)
    jax.clear_caches()


def test_the_logits_of_all_layers_are_never_kept_together(llama, tokens):
    text = jax.jit(lambda lm: readouts.logit_lens(lm, tokens, targets=3)).lower(llama).as_text()
    assert "2x6x26xf32" in text and "3x2x6x26" not in text


def test_edits_are_seen_and_other_leaves_compile_nothing(llama, tokens):
    vector = np.ones(16, np.float32)

    def lens(strength, position, target):
        steer = edits.edit("blocks.1.resid_post", edits.Add(vector, strength), positions=position)
        return readouts.logit_lens(llama, tokens, edits=(steer,), targets=target, kl=True)

    plain, steered = lens(0.0, 2, 1), lens(4.0, 2, 1)
    before = models.traces("logit_lens")
    lens(2.0, 3, 5)
    assert models.traces("logit_lens") == before
    changed = np.abs(np.asarray(steered.log_prob - plain.log_prob)).max(1) > 1e-5
    assert changed.tolist() == [[False] * 6, [0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]]
    np.testing.assert_allclose(steered.kl[-1], 0, atol=1e-5)


def test_as_a_tap_it_reads_another_model_and_has_a_gradient(llama, gemma2, tokens):
    tap = Tap("blocks.1.resid_mid", reduce=readouts.Lens(gemma2, targets=4, logits=True))
    _, kept = models.run(llama, tokens, (tap,), logits=False)
    stream = models.run(llama, tokens, ("blocks.1.resid_mid",), logits=False)[1]
    expected = _float64.read(gemma2, stream["blocks.1.resid_mid"])
    np.testing.assert_allclose(kept["blocks.1.resid_mid"].logits, expected, rtol=1e-4, atol=1e-5)

    def score(vector):
        steer = edits.edit("blocks.0.resid_post", edits.Add(vector))
        return jnp.sum(readouts.logit_lens(llama, tokens, targets=4, edits=(steer,)).log_prob[1])

    zero, way = np.zeros(16, np.float32), np.linspace(-1, 1, 16, dtype=np.float32)
    slope = (score(1e-2 * way) - score(-1e-2 * way)) / 2e-2
    np.testing.assert_allclose(jax.grad(score)(zero) @ way, slope, rtol=2e-2)


def test_apart_weights_and_bfloat16(llama, tokens):
    joined = readouts.logit_lens(llama, tokens, targets=3, kl=True)
    apart = readouts.logit_lens(models.unstack(llama), tokens, targets=3, kl=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), joined, apart)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), llama)
    found = readouts.logit_lens(half, tokens, targets=3)
    assert found.log_prob.dtype == found.entropy.dtype == jnp.float32
    np.testing.assert_allclose(found.log_prob, joined.log_prob, atol=0.3)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (dict(site="blocks.*.attn.z"), r"as wide as the residual stream, .*4, 4\]"),
        (dict(site="blocks.*.resid_pots"), "no site"),
        (dict(targets=26), "no token 26"),
        (dict(k=27), "k=27 of 26"),
        (dict(positions=6), "position 6"),
        (dict(positions=[0, -7]), "position -7"),
        (
            dict(edits=(edits.edit("blocks.0.mlp_out", edits.Set(0.0), positions=9),)),
            "positions are outside",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(llama, tokens, asked, says):
    before = models.traces()
    with pytest.raises(JaxdiffError, match=says):
        readouts.logit_lens(llama, tokens, **asked)
    assert models.traces() == before
