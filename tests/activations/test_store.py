import json
import shutil

import numpy as np
import pytest

from jaxdiff.activations import Moments, Recorded, Store, write_store
from jaxdiff.errors import JaxdiffError

pytestmark = pytest.mark.smoke


@pytest.fixture
def folder(tmp_path, rows, config):
    write_store(tmp_path / "store", Recorded([rows(70)], site="s"), config=config)
    return tmp_path / "store"


@pytest.mark.parametrize("span", [(0, 70), (0, 16), (16, 32), (3, 9), (10, 50), (69, 70), (5, 5)])
def test_any_range_of_rows(folder, rows, split, equal, span):
    start, stop = span
    assert equal(Store.open(folder).read(start, stop), split(rows(70), start, stop)[1])


@pytest.mark.parametrize("span", [(-1, 3), (60, 71), (5, 4)])
def test_rows_that_are_not_there(folder, span):
    with pytest.raises(ValueError, match="not in a store of 70 rows"):
        Store.open(folder).read(*span)


def test_context_around_a_row_stays_in_its_document(folder, equal):
    store = Store.open(folder)  # documents of 7 rows
    assert equal(store.document(17, 2), store.read(15, 20))
    assert equal(store.document(15, 3), store.read(14, 19))
    assert equal(store.document(20, 50), store.read(14, 21))
    assert equal(store.document(0, 1), store.read(0, 2))
    assert equal(store.document(69, 0), store.read(69, 70))


def test_shards_are_one_store(tmp_path, rows, split, config, equal, join):
    _two_shards(tmp_path, rows(80), split, config)
    store = Store.open(tmp_path)
    assert store.rows == 80 and store.blocks[2:4] == [(32, 37), (37, 53)]
    assert equal(store.read(0, 80), rows(80))
    assert equal(store.read(30, 60), split(rows(80), 30, 60)[1])
    assert equal(join(store.in_order()), rows(80))
    want = Moments.of(rows(80).x, rows(80).mask)
    np.testing.assert_allclose(store.moments.mean, want.mean, rtol=1e-12)
    np.testing.assert_allclose(store.moments.m2, want.m2, rtol=1e-12)


def test_shards_that_do_not_belong_together(tmp_path, rows, split, config):
    _two_shards(tmp_path, rows(80), split, config)
    _edit(tmp_path / "shard-00001/shard.json", site="other")
    with pytest.raises(JaxdiffError, match="site is other, in shard 0 it is s"):
        Store.open(tmp_path)
    shutil.rmtree(tmp_path / "shard-00001")
    with pytest.raises(JaxdiffError, match=r"no complete store.*\n.*shard-00001/shard.json"):
        Store.open(tmp_path)


def test_a_folder_that_is_no_store(tmp_path):
    with pytest.raises(JaxdiffError, match="no complete store"):
        Store.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 71}, "shape is"),
        ({"rows": 20}, "shape is"),
        ({"dtype": "bfloat16"}, "data_type is float32"),
        ({"chunk": 8}, "chunk_grid is"),
        ({"shape": [2, 3]}, "the moments have another shape"),
        ({"format": 2}, "format 2 is not 1"),
        ({"color": "red"}, "color"),
        ({"moments": {}}, "the store is damaged"),
    ],
)
def test_a_manifest_that_does_not_match(folder, change, message):
    _edit(folder / "shard-00000/shard.json", **change)
    with pytest.raises(JaxdiffError, match=message) as caught:
        Store.open(folder)
    assert "delete the folder and harvest again" in caught.value.fix


@pytest.mark.parametrize("name", ["shard.json", "x/zarr.json"])
def test_a_manifest_that_cannot_be_parsed(folder, name):
    path = folder / "shard-00000" / name
    path.write_text(path.read_text()[:-9])
    with pytest.raises(JaxdiffError, match="the file is damaged") as caught:
        Store.open(folder)
    assert name in caught.value.where


@pytest.mark.parametrize("name", ["x/c/4/0/0", "tokens/c/2"])
def test_a_chunk_that_is_truncated_or_missing(folder, name):
    path = folder / "shard-00000" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(JaxdiffError, match=r"it has \d+ of \d+ bytes") as caught:
        Store.open(folder)
    assert caught.value.where == str(path)
    path.unlink()
    with pytest.raises(JaxdiffError, match="it is missing"):
        Store.open(folder)


def _two_shards(folder, batch, split, config):
    """Writes what two processes would."""
    for i, part in enumerate(split(batch, 37)):
        write_store(folder / f"{i}", Recorded([part], site="s"), config=config)
        (folder / f"{i}/shard-00000").rename(folder / f"shard-0000{i}")
        _edit(folder / f"shard-0000{i}/shard.json", shard=i, shards=2)


def _edit(path, **change):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
