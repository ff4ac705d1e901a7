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


def test_processes_share_the_rows(store, rows):
    parts = [StoreSource(store, window=3, shard_index=i, shard_count=3) for i in range(3)]
    got = [list(part.batches(12, seed=0, epochs=2)) for part in parts]
    assert {len(batch.tokens) for batches in got for batch in batches} == {4}
    # All end together, or the processes would wait for each other.
    assert len({len(batches) for batches in got}) == 1
    endless = [take(part.batches(12, seed=0), 30) for part in parts]
    first = [set(tokens(batches[: len(batches) // 2])[:70]) for batches in endless]
    assert not first[0] & first[1] and not first[1] & first[2]
    with pytest.raises(ValueError, match="cannot be split into 3 parts"):
        parts[0].batches(10, seed=0)


def test_too_few_chunks_to_share(store):
    with pytest.raises(JaxdiffError, match="21 chunks cannot be shared by 22 processes"):
        StoreSource(store, shard_count=22)


def test_a_store_without_usable_rows(tmp_path, rows, config):
    write_store(tmp_path, Recorded([rows(20, masked=1.1)], site="s"), config=config)
    with pytest.raises(JaxdiffError, match="no usable rows"):
        StoreSource(Store.open(tmp_path))


def test_the_end_stays_the_end(store):
    batches = StoreSource(store).batches(300, seed=0, epochs=1)
    assert next(batches, None) is None
    assert next(batches, None) is None
