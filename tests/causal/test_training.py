"""Edits that are trained find what was planted, and nothing where nothing is."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.causal import Interchanges, das, train_edits
from jaxdiff.dictionaries import Dictionary
from jaxdiff.edits import Add, FromRow, Latents, LowRank, Patch, Scale, Subspace, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, ModelConfig, run, traces
from jaxdiff.models._lm import abstract

CODES = 4


def _planted() -> tuple[LM, np.ndarray]:
    """A model whose stream is two one-hot codes, turned; it answers with the token it reads.

    Token 4 a + b has the code of a in one subspace and that of b in another; blocks add nothing.
    Returns the model, and the directions of the codes `[8, 8]`, the first 4 of them for a.
    """
    spec = ModelConfig(
        vocab_size=16, d_model=8, n_layers=2, n_heads=2, d_mlp=8, architecture="llama", tied=False
    )
    graphdef, shapes = abstract(spec)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(8, 8)))[0].astype(np.float32)
    token = np.arange(16)
    codes = np.concatenate([np.eye(4)[token // 4], np.eye(4)[token % 4]], 1) @ turn.T
    params["embedding"] = jnp.asarray(codes, jnp.float32)
    params["unembedding"] = jnp.asarray(3 * codes, jnp.float32)
    params["final_norm"] = jax.tree.map(jnp.ones_like, params["final_norm"])
    return LM(params=params, graphdef=graphdef, spec=spec), turn


def _examples() -> tuple[Interchanges, Interchanges]:
    """All pairs of tokens: the answer has a of the source and b of the base."""
    rng = np.random.default_rng(2)
    pairs = rng.permutation(list(itertools.product(range(16), range(16))))
    texts = rng.integers(0, 16, (2, 256, 3))
    texts[0, :, -1], texts[1, :, -1] = pairs.T
    target = pairs[:, 1] // 4 * 4 + pairs[:, 0] % 4
    parts = [(*texts.astype(np.int32), target)] * 2
    cuts = (slice(0, 180), slice(180, 256))
    one, two = ([a[cut] for a in part] for part, cut in zip(parts, cuts, strict=True))
    return Interchanges(*one), Interchanges(*two)


def test_das_finds_the_planted_subspace_and_the_controls_find_none():
    lm, turn = _planted()
    before = traces("train_edits")
    found = das(
        lm,
        "blocks.0.resid_post",
        *_examples(),
        size=3,
        key=jax.random.key(0),
        steps=300,
        optimizer=optax.adam(0.1),
    )
    assert traces("train_edits") == before + 1
    assert found.accuracy == 1.0
    assert found.placebo < 0.3 and found.random_model < 0.5
    assert found.losses.shape == (300,) and found.losses[-1] < found.losses[0] / 3
    # What differs between codes of a: one-hot codes less their mean.
    planted = np.linalg.svd(turn[:, :4] @ (np.eye(4) - 0.25))[0][:, :3]
    basis = np.linalg.qr(np.asarray(found.view.vectors))[0]
    assert np.linalg.svd(planted.T @ basis)[1].min() > 0.99


def test_an_interchange_in_the_true_subspace_is_exact():
    lm, turn = _planted()
    train, _ = _examples()
    change = edit(
        "blocks.0.resid_post",
        FromRow(np.concatenate([np.arange(180) + 180] * 2)),
        view=Subspace(turn[:, :4]),
        positions=-1,
        rows=np.arange(180),
    )
    tokens = np.concatenate([train.base, train.source])
    logits, _ = run(lm, tokens, edits=(change,), logits="last")
    np.testing.assert_array_equal(jnp.argmax(logits[:180], -1), train.target)


def _squares(logits, batch):
    return jnp.mean(jnp.square(logits - batch["wanted"]))


def _batches(rng, n, t=4):
    for _ in range(n):
        tokens = rng.integers(0, 24, (2, t)).astype(np.int32)
        yield {"tokens": tokens, "wanted": np.zeros((1, 1, 24), np.float32)}


def test_a_vector_with_a_known_answer(llama, clean):
    """Added to the logits, the best vector is what they lack on average."""
    wanted = np.random.default_rng(0).normal(size=(1, 1, 24)).astype(np.float32)
    batch = {"tokens": clean, "wanted": wanted}
    start = edit("logits", Add(jnp.zeros(24), strength=2.0))
    (found,), losses = train_edits(
        llama, (start,), itertools.repeat(batch), _squares, optimizer=optax.adam(0.1), steps=150
    )
    lack = (wanted - run(llama, clean)[0]).mean((0, 1))
    np.testing.assert_allclose(2 * found.op.vector, lack, atol=1e-3)
    assert found.op.strength == 2.0 and type(found.op.strength) is float
    np.testing.assert_array_equal(start.op.vector, 0)
    assert losses[-1] < losses[0]


def test_only_what_was_chosen_is_trained(llama, rng_of):
    dictionary = Dictionary(
        *(jnp.asarray(rng_of.normal(size=s), jnp.float32) for s in ((1, 16, 5), (5,), (5, 1, 16))),
        *(jnp.zeros((1, 16)), jnp.zeros(())),
        activation="relu",
        k=2.0,
        code_norm="none",
    )
    latents = Latents(dictionary, np.array([1, 2]), normalization=None)
    edits = (
        edit("blocks.1.resid_post", Scale(np.ones(2, np.float32)), view=latents, positions=[0, 1]),
        edit("blocks.*.mlp_out", LowRank(rng_of.normal(size=(2, 16)), np.zeros((16, 2))), layers=2),
        edit("embed", Patch(np.zeros((1, 1, 16), np.float16)), rows=np.array([True, False])),
    )

    def train(**more):
        batches = _batches(np.random.default_rng(1), 3)
        optimizer = optax.adam(1e-2)
        return train_edits(llama, edits, batches, _squares, optimizer=optimizer, steps=3, **more)[0]

    def changed(found):
        leaves = jax.tree_util.tree_flatten_with_path(edits)[0]
        pairs = zip(leaves, jax.tree.leaves(found), strict=True)
        return {
            jax.tree_util.keystr(path)
            for (path, old), new in pairs
            if not np.array_equal(np.asarray(old, np.float32), np.asarray(new, np.float32))
        }

    assert changed(train()) == {"[0].op.by", "[1].op.up", "[1].op.down", "[2].op.source"}
    one = train(trained=lambda path: path.endswith("by"))
    assert changed(one) == {"[0].op.by"}
    assert jax.tree.structure(one) == jax.tree.structure(edits)


@pytest.fixture
def rng_of():
    return np.random.default_rng(4)


def test_padding_and_the_last_logits(llama, clean):
    """What the loss sees is what `run` returns for the same sequences."""
    sequences = np.array([[0] * 7, [0] * 4 + [-1] * 3], np.int32)
    start = edit("blocks.2.resid_post", Add(jnp.ones(16)), positions=-1)
    batch = {"tokens": clean, "sequences": sequences}

    def total(logits, batch):
        assert logits.shape == (2, 24)
        return jnp.sum(logits)

    _, losses = train_edits(
        llama, (start,), [batch], total, optimizer=optax.sgd(0.1), steps=1, logits="last"
    )
    expected, _ = run(llama, clean, edits=(start,), sequences=sequences, logits="last")
    np.testing.assert_allclose(losses[0], np.sum(expected), rtol=1e-4)


def test_what_cannot_be_trained_is_said(llama, clean):
    batch = {"tokens": clean, "wanted": np.zeros((1, 1, 24), np.float32)}
    good = edit("embed", Add(jnp.zeros(16)))

    def train(*edits, loss=_squares, batches=(batch,), steps=1):
        train_edits(llama, edits, batches, loss, optimizer=optax.sgd(0.1), steps=steps)

    with pytest.raises(JaxdiffError, match=r"here: \[0\]\.op\.vector, \[0\]\.op\.strength"):
        train(edit("embed", Add(1.0)))
    with pytest.raises(JaxdiffError, match="1 batches for 2 steps"):
        train(good, steps=2)
    with pytest.raises(JaxdiffError, match="not finite from step 1 on"):
        last = dict(batch, wanted=np.full((1, 1, 24), np.nan, np.float32))
        train(good, batches=(batch, last, batch), steps=3)
    with pytest.raises(JaxdiffError, match="outside of the batch: 7"):
        train(dataclasses.replace(good, positions=np.int32(7)))
    examples = _examples()[0]
    with pytest.raises(JaxdiffError, match="9 of 8 dimensions"):
        das(_planted()[0], "embed", examples, examples, size=9, key=jax.random.key(0))
    with pytest.raises(JaxdiffError, match="no examples"):
        none = Interchanges(examples.base[:0], examples.source[:0], examples.target[:0])
        das(_planted()[0], "embed", examples, none, size=2, key=jax.random.key(0))
