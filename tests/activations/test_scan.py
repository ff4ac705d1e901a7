import numpy as np
import pytest

from jaxdiff.activations import Recorded, Store, StoreSource, StreamSource, scan, write_store


@pytest.mark.parametrize("batch", [1, 16, 20, 70, 100])
def test_all_rows_in_order_in_batches_of_one_size(
    tmp_path, rows, config, equal, join, split, batch
):
    write_store(tmp_path, Recorded([rows(70)], site="s"), config=config)
    store = Store.open(tmp_path)
    got = list(scan(store, batch))
    assert {len(b.tokens) for b in got} == {batch}
    assert len(got) == -(-70 // batch)
    whole, tail, *_ = split(join(got), 70)
    assert equal(whole, rows(70))
    assert not tail.mask.any() and (tail.sequences == -1).all() and not tail.x.any()
    assert equal(join(scan(StoreSource(store), batch)), join(got))


def test_a_stream_is_scanned_like_a_store(tmp_path, pair, documents, site, config, equal, join):
    from jaxdiff.activations import harvest

    text = documents(9)
    write_store(tmp_path, harvest(pair, text, site, config=config), config=config)
    stream = StreamSource(pair, text, site, config=config)
    assert equal(join(scan(stream, 13)), join(scan(Store.open(tmp_path), 13)))
    assert np.unique(join(scan(stream, 13)).sequences).tolist() == [-1, *range(9)]
