"""Selectors against loops that ask of each number whether it is selected."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.edits import Add, Edit, Set, Skip, Subspace, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import run

B, T, D, N = 3, 5, 8, 3
STREAM = ("B", "T", D)
HEADS = ("B", "T", 2, 4)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def _apply(edit: Edit, value, at):
    return edit(value, at)


def _hit(edit, at, shape=(B, T, D)):
    """Where the value is changed."""
    return np.asarray(_apply(edit, jnp.zeros(shape), at)) != 0


def _texts(sequences, positions):
    """Of each row: text and position of each token; padding has none."""
    if positions is None:
        positions = np.tile(np.arange(T), (B, 1))
    positions = np.broadcast_to(positions, (B, T))
    sequences = np.zeros((B, T), int) if sequences is None else sequences
    return sequences, positions


def _expected(selector, sequences, positions):
    sequences, positions = _texts(sequences, positions)
    selector = np.asarray(selector)
    out = np.zeros((B, T), bool)
    for b, t in itertools.product(range(B), range(T)):
        if sequences[b, t] < 0:
            continue
        real = [u for u in range(T) if sequences[b, u] >= 0]
        last = sequences[b, real[-1]]
        position = positions[b, t]
        if selector.dtype == bool:
            mask = np.broadcast_to(selector, (B, selector.shape[-1]))[b]
            out[b, t] = 0 <= position < len(mask) and mask[position]
            continue
        for wanted in (
            np.broadcast_to(selector, (B, *selector.shape[1:]))[b].ravel()
            if (selector.ndim == 2)
            else selector.ravel()
        ):
            if wanted >= 0:
                out[b, t] |= position == wanted
            elif sequences[b, t] == last:
                # The text may have begun before the tokens that are run now.
                same = [u for u in real if sequences[b, u] == last]
                back = same[::-1].index(t) + 1
                out[b, t] |= wanted == -back
    return out


PADDED_RIGHT = np.array([[0, 0, 0, 0, 0], [0, 0, 0, -1, -1], [0, -1, -1, -1, -1]])
PADDED_LEFT = PADDED_RIGHT[:, ::-1]
LEFT = np.array([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2], [0, 0, 0, 0, 0]])
HOLES = np.array([[0, -1, 0, -1, 0], [0, 0, -1, 0, 0], [-1, 0, 0, 0, -1]])
IN_HOLES = np.array([[0, 0, 1, 1, 2], [0, 1, 1, 2, 3], [0, 0, 1, 2, 2]])
PACKED = np.array([[0, 0, 0, 1, 1], [2, 2, 3, 3, -1], [4, 4, 4, 4, 4]])
IN_PACKED = np.array([[0, 1, 2, 0, 1], [0, 1, 0, 1, 0], [0, 1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("sequences", "positions"),
    [
        (None, None),
        (PADDED_RIGHT, None),
        (PADDED_LEFT, LEFT),
        (HOLES, IN_HOLES),
        (PACKED, IN_PACKED),
        (None, np.arange(7, 12)[None]),
    ],
    ids=["whole", "padded", "left", "holes", "packed", "later"],
)
def test_positions(rng, somewhere, sequences, positions):
    at = somewhere(STREAM, sequences=sequences, positions=positions)
    forms = [0, 2, -1, -2, [], [1], [0, 3], [-1, 0], [-3, -1, 2], 9, -6]
    forms += [[[0], [1], [2]], [[-1], [-2], [0]], [[0, -1], [1, 1], [-2, 4]], [[1, -1]]]
    forms += [rng.random(T) < 0.5, rng.random((B, T)) < 0.5, rng.random((1, T)) < 0.5]
    forms += [np.array([True, False]), rng.random((B, 12)) < 0.5]
    for selector in forms:
        found = _hit(edit("embed", Add(1.0), positions=selector), at).all(-1)
        np.testing.assert_array_equal(
            found, _expected(selector, sequences, positions), err_msg=str(selector)
        )


def _selected(selector, size):
    selector = np.asarray(selector)
    if selector.dtype == bool:
        return selector
    return np.array([i in selector.ravel() or i - size in selector.ravel() for i in range(size)])


FORMS = (0, 1, -1, [], [0, -1], [True, False])


def test_rows_and_heads(somewhere):
    for rows in (*FORMS[:-1], [True, False, True]):
        found = _hit(edit("embed", Add(1.0), rows=rows), somewhere(STREAM))
        np.testing.assert_array_equal(found.all((1, 2)), _selected(rows, B))
    for site, axes, axis in (("attn.z", HEADS, 2), ("attn.pattern", ("B", 2, "T", "S"), 1)):
        shape = [{"B": B, "T": T, "S": T}.get(a, a) for a in axes]
        for heads in FORMS:
            found = _hit(edit(f"blocks.1.{site}", Add(1.0), heads=heads), somewhere(axes), shape)
            rest = tuple(a for a in range(4) if a != axis)
            np.testing.assert_array_equal(found.all(rest), _selected(heads, 2))
            np.testing.assert_array_equal(found.any(rest), _selected(heads, 2))


def test_layers_and_steps(somewhere):
    for layers in (*FORMS[:-1], [True, False, True]):
        change = edit("blocks.*.resid_post", Add(1.0), layers=layers)
        for number in range(N):
            for layer in (number, jnp.int32(number)):
                hit = _hit(change, somewhere(STREAM, layer=layer))
                assert hit.all() == hit.any() == _selected(layers, N)[number]
    for steps, expected in ((0, [0]), ([1, 3], [1, 3]), ([True, False, True], [0, 2]), ([], [])):
        change = edit("embed", Add(1.0), steps=steps)
        hits = [_hit(change, somewhere(STREAM, step=jnp.int32(s))).any() for s in range(5)]
        assert np.flatnonzero(hits).tolist() == expected


def test_all_selectors_must_agree(rng, somewhere):
    at = somewhere(HEADS, layer=jnp.int32(1), step=jnp.int32(2))
    given = {
        "positions": ([1, -1], np.isin(np.arange(T), [1, 4])[None, :, None, None]),
        "rows": ([0, 2], np.isin(np.arange(B), [0, 2])[:, None, None, None]),
        "heads": ([1], np.array([False, True])[None, None, :, None]),
        "layers": ([1], True),
        "steps": ([0, 2], True),
    }
    for names in itertools.chain(
        itertools.combinations(given, 2), (tuple(given), tuple(given)[:3])
    ):
        change = edit("blocks.*.attn.z", Add(1.0), **{n: given[n][0] for n in names})
        expected = np.ones((B, T, 2, 4), bool)
        for name in names:
            expected = expected & given[name][1]
        np.testing.assert_array_equal(_hit(change, at, (B, T, 2, 4)), expected)
    other = edit("blocks.*.attn.z", Add(1.0), rows=0, layers=0)
    assert not _hit(other, at, (B, T, 2, 4)).any()


@pytest.mark.parametrize(
    ("site", "more", "says"),
    [
        ("embed", {"positions": 5}, "positions are outside of the batch: 5"),
        ("embed", {"positions": [0, -6]}, "outside of the batch: -6"),
        ("embed", {"positions": np.ones((3, 4), bool)}, "a mask of 4"),
        ("embed", {"rows": [0, 3]}, "rows are outside of the batch: 3"),
        ("blocks.1.attn.z", {"heads": 2}, "heads are outside of the model: 2"),
        ("blocks.1.attn.k", {"heads": 1}, "heads are outside of the model: 1"),
        ("model.layers.1", {"heads": 0}, "no heads"),
        ("blocks.*.resid_post", {"layers": [1, 3]}, "layers are outside of the model: 3"),
        ("blocks.*.resid_post", {"layers": [True]}, "a mask of 1"),
    ],
)
def test_numbers_that_do_not_exist_are_refused_when_run(llama, tokens, site, more, says):
    change = edit(site, Add(1.0), **more)
    with pytest.raises(JaxdiffError, match=says):
        run(llama, tokens, edits=(change,))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: edit("embed", Add), "needs an op"),
        (lambda: edit("embed", 3.0), "needs an op"),
        (lambda: edit("embed", "zero"), "needs an op"),
        (lambda: edit("embed", Add(1.0), view=Add(1.0)), "no view"),
        (lambda: edit("embed", Add(1.0), view=Subspace), "no view"),
        (lambda: edit("embed", Add(1.0), positions=1.5), "numbers or a mask, not float64"),
        (lambda: edit("embed", Add(1.0), positions=np.zeros((1, 1, 1), int)), "3 dimensions"),
        (lambda: edit("embed", Add(1.0), rows=[[1]]), "2 dimensions"),
        (lambda: edit("embed", Add(1.0), steps=-1), "counted from 0"),
        (lambda: edit("blocks.1.attn_out", Add(1.0), layers=1), "layers select"),
        (lambda: edit("blocks.1.attn_out", Skip()), "one whole block"),
        (lambda: edit("blocks.1", Set(0.0)), "one whole block"),
        (lambda: edit("blocks.*", Skip()), "one whole block"),
        (lambda: edit("blocks.1", Skip(), rows=0), "for all tokens or not at all"),
    ],
)
def test_what_is_no_edit_is_refused_when_made(make, says):
    with pytest.raises(JaxdiffError, match=says):
        make()
