import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import edits, models, readouts
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import run

SITE = "blocks.*.resid_post"


@pytest.fixture
def target_tokens() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 24, (2, 4)).astype(np.int32)


def _by_hand(source, target, source_tokens, target_tokens, cell, rows, through=lambda x: x):
    """One cell and row: one run of each model, with the value set by hand."""
    low, high, at, to = cell
    hidden = run(source, source_tokens[rows[0]][None], (SITE,), logits=False)[1][SITE]
    value = through(hidden[low, 0, at])
    put = edits.edit(f"blocks.{high}.resid_post", edits.Set(value), positions=to)
    return run(target, target_tokens[rows[1]][None], (), (put,), logits="last")[0][0]


def test_every_pair_of_layers_is_a_run_by_hand(some, tokens, target_tokens):
    found = readouts.patchscope(
        some, tokens, target_tokens, source_positions=[2, 4], target_positions=1,
        source_layers=[2, 0], target_layers=[1, 2], k=3, targets=[5, 6], logits=True,
    )  # fmt: skip
    assert found.logits.shape == (2, 2, 2, 26) and found.tokens.shape == (2, 2, 2, 3)
    for s, t, b in ((0, 0, 1), (1, 0, 0), (0, 1, 0)):
        cell = ([2, 0][s], [1, 2][t], [2, 4][b], 1)
        expected = _by_hand(some, some, tokens, target_tokens, cell, (b, b))
        np.testing.assert_allclose(found.logits[s, t, b], expected, rtol=1e-4, atol=2e-5)
        log_p = np.asarray(jax.nn.log_softmax(expected))
        np.testing.assert_allclose(found.log_prob[s, t, b], log_p[[5, 6][b]], rtol=1e-4, atol=2e-5)
        np.testing.assert_array_equal(found.tokens[s, t, b], np.argsort(-log_p)[:3])


def test_putting_back_what_was_there_changes_nothing(some, tokens):
    logits = run(some, tokens, logits="last")[0]
    for position in (-1, 2):
        found = readouts.patchscope(
            some, tokens, tokens, source_positions=position, target_positions=position, logits=True
        )
        assert found.logits.shape == (3, 2, 26)
        expected = np.broadcast_to(logits, (3, 2, 26))
        np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=2e-5)


def test_own_layers_and_axes(llama, tokens, target_tokens):
    def logits(**layers):
        return readouts.patchscope(llama, tokens, target_tokens, logits=True, **layers).logits

    grid = logits(target_layers=[0, 1, 2])
    assert grid.shape == (3, 3, 2, 26)
    own = logits()
    assert own.shape == (3, 2, 26)
    np.testing.assert_allclose(own, grid[np.arange(3), np.arange(3)], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits(target_layers=1), grid[:, 1], rtol=1e-5, atol=1e-5)
    one = logits(source_layers=2, target_layers=0)
    np.testing.assert_allclose(one, grid[2, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits(source_layers=1), own[1], rtol=1e-5, atol=1e-5)
    before = models.traces("sweep"), models.traces("patchscope")
    logits(source_layers=0, target_layers=2)
    assert (models.traces("sweep"), models.traces("patchscope")) == before
    assert np.ptp(np.asarray(grid), axis=(0, 1)).max() > 1e-2


def test_one_text_at_all_of_its_positions(llama, tokens, target_tokens):
    """One row stands for all of the others, on either side."""
    found = readouts.patchscope(
        llama, tokens[:1], target_tokens[:1], source_positions=np.arange(6), logits=True
    )
    assert found.logits.shape == (3, 6, 26)
    for layer, position in ((0, 3), (2, 5)):
        cell = (layer, layer, position, -1)
        expected = _by_hand(llama, llama, tokens, target_tokens, cell, (0, 0))
        np.testing.assert_allclose(found.logits[layer, position], expected, rtol=1e-4, atol=2e-5)


def test_across_models_through_an_affine_map(llama, gpt2, tokens, target_tokens):
    rng = np.random.default_rng(3)
    affine = readouts.Affine(*(rng.normal(0, 1, s).astype(np.float32) for s in ((16, 16), (16,))))
    found = readouts.patchscope(
        llama, tokens, target_tokens, target=gpt2, through=affine, target_layers=1, logits=True
    )
    expected = _by_hand(
        llama, gpt2, tokens, target_tokens, (2, 1, -1, -1), (1, 1),
        lambda x: affine.weight @ x + affine.bias,
    )  # fmt: skip
    np.testing.assert_allclose(found.logits[2, 1], expected, rtol=1e-4, atol=2e-5)
    steer = edits.edit("blocks.0.resid_post", edits.Add(rng.normal(0, 1, 16).astype(np.float32)))
    other = readouts.patchscope(
        llama, tokens, target_tokens, target=gpt2, through=affine, edits=(steer,), logits=True
    )
    assert np.abs(other.logits[1] - found.logits[1]).max() > 1e-3


def test_generation_goes_on_from_the_patched_prompt(gemma2, tokens, target_tokens):
    """Token by token, as full runs of the growing text under the same edit of the prompt."""
    matrix = np.random.default_rng(2).normal(0, 5, (16, 16)).astype(np.float32)
    found = readouts.patchscope_generate(
        gemma2, tokens, target_tokens, 6, source_layers=[0, 2], target_layers=[0, 2],
        source_positions=[2, 4], target_positions=[1, -1], stop=(), through=readouts.Affine(matrix),
    )  # fmt: skip
    assert found.shape == (2, 2, 2, 6)
    # Cells that are mixed up would show.
    assert len(np.unique(np.asarray(found).reshape(-1, 6), axis=0)) > 4
    hidden = run(gemma2, tokens, (SITE,), logits=False)[1][SITE]
    for s, t, b in itertools.product(range(2), repeat=3):
        value = matrix @ hidden[[0, 2][s], b, [2, 4][b]]
        put = edits.edit(f"blocks.{2 * t}.resid_post", edits.Set(value), positions=[1, 3][b])
        text = target_tokens[b].tolist() + np.asarray(found[s, t, b]).tolist()
        logits = run(gemma2, np.array([text[:-1]], np.int32), (), (put,))[0][0]
        assert np.argmax(logits[3:], -1).tolist() == text[4:]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (dict(source_layers=3), "source_layers=3 in a model of 3"),
        (dict(target_layers=[0, -1]), "target_layers"),
        (dict(source_positions=6), "position 6"),
        (dict(target_positions=[0, 4]), "position 4"),
        (dict(source_positions=[0, 1, 2]), r"rows .*2, 3"),
        (dict(source_site="blocks.1.resid_post"), "all layers"),
        (dict(target_site="blocks.*.attn.z"), "as wide as"),
        (dict(targets=26), "no token 26"),
        (dict(through=readouts.Affine(np.ones((3, 16), np.float32))), "width 3"),
    ],
)
def test_what_does_not_fit_is_refused(llama, tokens, target_tokens, asked, says):
    with pytest.raises(JaxdiffError, match=says):
        readouts.patchscope(llama, tokens, target_tokens, **asked)


def test_a_target_with_fewer_layers(llama, tokens, target_tokens):
    spec = dataclasses.replace(llama.spec, n_layers=2)
    small = models.init(spec, key=jax.random.key(1))
    with pytest.raises(JaxdiffError, match=r"target_layers=\[0, 1, 2\] in a model of 2 layers"):
        readouts.patchscope(llama, tokens, target_tokens, target=small)
    found = readouts.patchscope(
        llama, tokens, target_tokens, target=small, source_layers=1, logits=True
    )
    expected = _by_hand(llama, small, tokens, target_tokens, (1, 1, -1, -1), (0, 0))
    np.testing.assert_allclose(found.logits[0], expected, rtol=1e-4, atol=2e-5)


def test_an_affine_map_is_a_matrix_and_a_bias():
    x = jnp.arange(6.0).reshape(1, 2, 3)
    found = readouts.Affine(np.array([[1, 2, 3]], np.float32), 4.0)(x)
    np.testing.assert_allclose(found, [[[0 + 2 + 6 + 4], [3 + 8 + 15 + 4]]])
