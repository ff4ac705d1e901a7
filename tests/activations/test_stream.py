import json

import jax
import numpy as np
import pytest

from jaxdiff.activations import (
    Moments,
    Normalization,
    Store,
    StoreSource,
    StreamSource,
    harvest,
    write_store,
)
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh


def take(batches, n):
    return [next(batches) for _ in range(n)]


@pytest.fixture
def stream(pair, documents, site, config):
    return StreamSource(pair, documents(24), site, config=config)


def rows_of(batch):
    """Returns the rows as a sorted list: who they are and what is in them."""
    return sorted(
        zip(
            batch.sequences.tolist(),
            batch.positions.tolist(),
            batch.x[:, 1, 0].tolist(),
            strict=True,
        )
    )


def test_store_and_stream_give_the_same_rows(tmp_path, stream, pair, documents, site, config, join):
    write_store(tmp_path, harvest(pair, documents(24), site, config=config), config=config)
    store = Store.open(tmp_path)
    n = store.rows - store.masked
    stored = join(StoreSource(store).batches(1, seed=0, epochs=2))
    streamed = join(stream.batches(1, seed=0, epochs=2))
    for epoch in range(2):
        part = slice(epoch * n, (epoch + 1) * n)
        a, b = (jax.tree.map(lambda x, part=part: x[part], r) for r in (stored, streamed))
        assert rows_of(a) == rows_of(b)
    assert streamed.mask.all()


@pytest.mark.parametrize(("ring", "batch"), [(64, 10), (64, 50), (16, 20), (10_000, 7)])
def test_every_usable_row_once_an_epoch(pair, documents, site, config, join, ring, batch):
    config = config.model_copy(update={"ring": ring})
    stream = StreamSource(pair, documents(24), site, config=config)
    all_rows = join(harvest(pair, documents(24), site, config=config))
    want = rows_of(jax.tree.map(lambda a: a[all_rows.mask], all_rows))
    got = join(stream.batches(batch, seed=0, epochs=3))
    assert len(got.tokens) == 3 * len(want) // batch * batch
    found = rows_of(got)
    counts = {row: found.count(row) for row in want}
    assert set(found) == set(want) and sum(counts.values()) == len(found)
    assert set(counts.values()) <= {2, 3}


def test_the_order_is_shuffled_and_depends_on_the_seed(stream, equal, join):
    first = join(take(stream.batches(10, seed=0), 12))
    assert equal(first, join(take(stream.batches(10, seed=0), 12)))
    assert (first.sequences != join(take(stream.batches(10, seed=1), 12)).sequences).any()
    half = first.sequences[:32]
    assert (np.diff(half) < 0).sum() > 8


@pytest.mark.parametrize("batch", [10, 40])
@pytest.mark.parametrize("epochs", [None, 3])
def test_a_restored_position_goes_on_bit_identically(stream, equal, batch, epochs):
    batches = stream.batches(batch, seed=3, epochs=epochs)
    states, want = [batches.get_state()], []
    for got in batches:
        want.append(got)
        states.append(batches.get_state())
        if epochs is None and len(want) == 40:
            break
    for at in (0, 4, len(want) // 2, len(want) - 3, len(want)):
        again = stream.batches(batch, seed=3, epochs=epochs)
        again.set_state(json.loads(json.dumps(states[at])))
        rest = [got for _, got in zip(want[at:], again, strict=False)]
        assert len(rest) == len(want) - at
        assert all(equal(a, b) for a, b in zip(rest, want[at:], strict=True))
        if epochs is not None:
            assert next(again, None) is None


def test_the_state_is_small(stream):
    batches = stream.batches(10, seed=0)
    take(batches, 20)
    assert len(json.dumps(batches.get_state())) < 300


def test_new_rows_are_run_at_the_pace_of_training(pair, documents, site, config):
    config = config.model_copy(update={"ring": 128})
    taken = 0

    class Text(list):
        def __getitem__(self, index):
            nonlocal taken
            taken += 1
            return super().__getitem__(index)

    batches = StreamSource(pair, Text(documents(400)), site, config=config).batches(8, seed=0)
    next(batches)
    counts = []
    for _ in range(30):
        before = taken
        next(batches)
        counts.append(taken - before)
    assert max(counts) <= 1 and sum(counts) > 5


def test_normalisation_of_the_first_rows(pair, documents, site, config, join):
    stream = StreamSource(pair, documents(24), site, config=config, warmup=40)
    rows = harvest(pair, documents(24), site, config=config)
    got = []
    while sum(int(batch.mask.sum()) for batch in got) < 40:
        got.append(next(rows))
    batch = join(got)
    want = Moments.of(batch.x, batch.mask).normalization()
    np.testing.assert_allclose(stream.normalization.mean, want.mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stream.normalization.scale, want.scale, rtol=1e-5)
    assert stream.normalization is stream.normalization


def test_normalisation_given_or_off(pair, documents, site, config):
    given = Normalization.identity((2, 8))
    stream = StreamSource(pair, documents(4), site, config=config, normalization=given)
    assert stream.normalization is given
    config = config.model_copy(update={"normalize": False})
    assert (StreamSource(pair, documents(4), site, config=config).normalization.scale == 1).all()


def test_text_without_usable_rows(pair, documents, site, config):
    config = config.model_copy(update={"skip": 100})
    with pytest.raises(JaxdiffError, match="no usable activations"):
        next(StreamSource(pair, documents(8), site, config=config).batches(4, seed=0))


def test_a_stream_runs_on_a_mesh(stream, pair, documents, site, config):
    mesh = make_mesh(2, 4)
    on_mesh = StreamSource(pair, documents(24), site, config=config, mesh=mesh)
    a, b = (next(s.batches(10, seed=0)) for s in (stream, on_mesh))
    assert (a.tokens == b.tokens).all()
    np.testing.assert_allclose(a.x, b.x, rtol=1e-5, atol=1e-6)


def test_nothing_is_written(stream, tmp_path, monkeypatch):
    from jaxdiff.activations import files

    def refuse(*args, **kwargs):
        raise AssertionError("stream mode opened a store")

    monkeypatch.setattr(files.Files, "__init__", refuse)
    monkeypatch.chdir(tmp_path)
    take(stream.batches(10, seed=0), 20)
    assert stream.normalization is not None
    assert not list(tmp_path.iterdir())
