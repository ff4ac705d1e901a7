import json

import numpy as np
import pytest

from jaxdiff.activations import Recorded, Store, StoreSource, write_store
from jaxdiff.errors import JaxdiffError


@pytest.fixture(scope="module")
def store(tmp_path_factory, rows):
    from jaxdiff.config import HarvestConfig

    folder = tmp_path_factory.mktemp("store")
    config = HarvestConfig(dtype="float32", chunk=16)
    write_store(folder, Recorded([rows(333)], site="s"), config=config)
    return Store.open(folder)


def take(batches, n):
    return [next(batches) for _ in range(n)]


def tokens(batches):
    return np.concatenate([batch.tokens for batch in batches])


def test_rows_come_with_what_is_known_about_them(store, rows, equal, join):
    import jax

    got = join(StoreSource(store, window=3).batches(10, seed=0, epochs=1))
    assert equal(got, jax.tree.map(lambda a: a[got.tokens], rows(333)))


@pytest.mark.parametrize(("window", "batch"), [(1, 7), (3, 10), (100, 64), (2, 100)])
def test_every_usable_row_once_an_epoch(store, rows, window, batch):
    usable = np.flatnonzero(rows(333).mask)
    n = len(usable)
    got = tokens(StoreSource(store, window=window).batches(batch, seed=0, epochs=3))
    assert len(got) == 3 * n // batch * batch
    for epoch in range(3):
        part = np.sort(got[epoch * n : (epoch + 1) * n])
        if len(part) == n:
            assert (part == usable).all()
        else:
            assert np.isin(part, usable).all() and len(np.unique(part)) == len(part)
    assert (got[:n] != np.sort(got[:n])).any()


def test_the_order_depends_on_seed_and_epoch_only(store):
    def first(seed):
        return tokens(take(StoreSource(store, window=4).batches(20, seed=seed), 26))

    assert (first(0) == first(0)).all()
    assert (first(0) != first(1)).any()
    assert (first(2**40) == first(2**40)).all()
    n = store.rows - store.masked
    assert (first(0)[:200] != first(0)[n : n + 200]).any()


def test_a_window_mixes_its_blocks(store):
    got = tokens(take(StoreSource(store, window=8).batches(64, seed=0), 1))
    assert len(np.unique(got // 16)) > 4


@pytest.mark.parametrize("at", [0, 1, 4, 5, 13, 14, 30])
def test_a_restored_position_goes_on_bit_identically(store, equal, at):
    source = StoreSource(store, window=4)
    batches = source.batches(20, seed=3)
    take(batches, at)
    state = json.loads(json.dumps(batches.get_state()))
    want = take(batches, 20)
    again = source.batches(20, seed=3)
    take(again, 2)  # a position may be set on an iterator that is under way
    again.set_state(state)
    assert again.get_state() == state
    assert all(equal(a, b) for a, b in zip(take(again, 20), want, strict=True))


def test_lanes_share_the_rows_and_end_together(store):
    source = StoreSource(store, window=3, lanes=3)
    got = list(source.batches(12, seed=0, epochs=2))
    assert {len(batch.tokens) for batch in got} == {12}
    endless = take(source.batches(12, seed=0), 15)
    lanes = [{t for b in endless for t in b.tokens[4 * i : 4 * i + 4].tolist()} for i in range(3)]
    assert not lanes[0] & lanes[1] and not lanes[1] & lanes[2]
    with pytest.raises(ValueError, match="cannot be split into 3 lanes"):
        source.batches(10, seed=0)


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize(
    "parts", [[(0,), (1,)], [(0, 1), (2, 3)], [(0, 2), (1, 3)], [(0,), (0,), (1,), (1,)]]
)
def test_processes_get_their_parts_of_one_order(store, lanes, parts):
    """Whatever processes there are, together they have the batches that one process has."""
    whole = take(StoreSource(store, window=4, lanes=lanes).batches(16, seed=3), 30)
    count = 1 + max(max(own) for own in parts)
    states = {}
    for own in parts:
        source = StoreSource(store, window=4, lanes=lanes, parts=(own, count))
        batches = source.batches(16, seed=3)
        for batch, want in zip(take(batches, 20), whole, strict=False):
            each = 16 // count
            rows = np.concatenate([np.arange(each) + each * i for i in own])
            assert (batch.tokens == want.tokens[rows]).all() and (batch.x == want.x[rows]).all()
        states |= json.loads(json.dumps(batches.get_state()))
    # One process, and another number of them, go on from there.
    for own, count in (((0,), 1), ((1,), 2), ((3,), 8)):
        batches = StoreSource(store, window=4, lanes=lanes, parts=(own, count)).batches(16, seed=3)
        batches.set_state(states)
        part = slice(16 // count * own[0], 16 // count * (own[0] + 1))
        assert all(
            (batch.tokens == want.tokens[part]).all()
            for batch, want in zip(take(batches, 10), whole[20:], strict=True)
        )


def test_a_position_of_other_lanes_is_refused(store):
    state = StoreSource(store, lanes=2).batches(16, seed=0).get_state()
    with pytest.raises(JaxdiffError, match="does not have the position of lane 2, lane 3"):
        StoreSource(store, lanes=4).batches(16, seed=0).set_state(state)


def test_a_batch_that_processes_cannot_share(store):
    with pytest.raises(ValueError, match="cannot be split into 3 parts"):
        StoreSource(store, parts=((1,), 3)).batches(10, seed=0)


def test_too_few_chunks_to_share(store):
    with pytest.raises(JaxdiffError, match="21 chunks cannot be shared by 22 lanes"):
        StoreSource(store, lanes=22)


def test_a_store_without_usable_rows(tmp_path, rows, config):
    write_store(tmp_path, Recorded([rows(20, masked=1.1)], site="s"), config=config)
    with pytest.raises(JaxdiffError, match="no usable rows"):
        StoreSource(Store.open(tmp_path))


def test_the_end_stays_the_end(store):
    batches = StoreSource(store).batches(300, seed=0, epochs=1)
    assert next(batches, None) is None
    assert next(batches, None) is None
