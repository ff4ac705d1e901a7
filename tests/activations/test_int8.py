"""Stores of 8 bits: what they keep, how they are read, and what is noticed when they break."""

import jax
import numpy as np
import pytest

from jaxdiff.activations import Moments, Recorded, Store, StoreSource, write_store
from jaxdiff.activations.int8 import dequantise, quantise
from jaxdiff.config import HarvestConfig
from jaxdiff.errors import JaxdiffError

CONFIG = HarvestConfig(dtype="int8", chunk=16)


def drawn(seed=0, rows=50):
    rng = np.random.default_rng(seed)
    x = rng.standard_t(3, (rows, 2, 24)) * rng.lognormal(0, 3, (rows, 2, 1))
    x[7], x[9, 1], x[11] = 0, 0, 1e-30
    return x.astype(np.float32)


def test_no_value_is_off_by_more_than_half_a_step():
    x = drawn()
    values, scale = quantise(x)
    assert values.dtype == np.int8 and scale.shape == (50, 2)
    found, exact = dequantise(values, scale), x.astype(np.float64)
    off = np.abs(found - exact).max(axis=-1)
    largest = np.abs(exact).max(axis=-1)
    assert (off <= largest / 254 * (1 + 1e-5)).all()
    # The largest value is kept but for rounding, and nothing becomes something.
    np.testing.assert_allclose(np.abs(found).max(axis=-1), largest, rtol=1e-6)
    assert (found[7] == 0).all() and (found[9, 1] == 0).all()


@pytest.fixture
def store(tmp_path, rows):
    write_store(tmp_path, Recorded([rows(70)], site="s"), config=CONFIG)
    return Store.open(tmp_path)


def test_rows_are_those_that_were_quantised(store, rows, split, tmp_path):
    want = dequantise(*quantise(rows(70).x))
    for start, stop in ((0, 70), (3, 9), (10, 50), (5, 5)):
        got, exact = store.read(start, stop), split(rows(70), start, stop)[1]
        np.testing.assert_array_equal(got.x, want[start:stop])
        assert (got.tokens == exact.tokens).all() and (got.mask == exact.mask).all()
    assert store.dtype == np.float32 and store.stored == np.int8
    assert (tmp_path / "shard-00000/x/c/1/0/0").stat().st_size == 16 * 2 * 6
    assert (tmp_path / "shard-00000/scale/c/1/0").stat().st_size == 16 * 2 * 4
    exact = Moments.of(rows(70).x, rows(70).mask)
    np.testing.assert_array_equal(store.moments.mean, exact.mean)


def test_local_rows_are_mapped_not_copied(store):
    values, _ = store.read_stored(20, 30)
    base = values
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(getattr(base, "obj", base), np.memmap)


def test_a_trainer_gets_the_same_rows(store, equal, join):
    got = join(StoreSource(store, window=2).batches(10, seed=0, epochs=1))
    whole = store.read(0, 70)
    assert got.x.dtype == np.float32
    assert equal(got, jax.tree.map(lambda a: a[got.tokens], whole))


def test_other_tools_open_both_arrays(store, tmp_path, rows):
    import tensorstore as ts

    def opened(name):
        path = f"{tmp_path}/shard-00000/{name}/"
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
        return np.asarray(ts.open(spec).result().read().result())

    x, scale = opened("x"), opened("scale")
    assert x.shape == (70, 2, 6) and scale.shape == (70, 2)
    np.testing.assert_array_equal(x * scale[:, :, None], store.read(0, 70).x)


def test_a_lost_scale_is_named(store, tmp_path):
    path = tmp_path / "shard-00000/scale/c/2/0"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(JaxdiffError, match="it has 127 of 128 bytes") as error:
        Store.open(tmp_path)
    assert error.value.where == str(path)


def test_a_harvest_computes_in_float32(pair, documents, site, tmp_path):
    from jaxdiff.activations import harvest

    for dtype in ("float32", "int8"):
        config = CONFIG.model_copy(update={"dtype": dtype})
        text = documents(12)
        write_store(tmp_path / dtype, harvest(pair, text, site, config=config), config=config)
    exact, short = (Store.open(tmp_path / dtype) for dtype in ("float32", "int8"))
    np.testing.assert_array_equal(
        short.read(0, short.rows).x, dequantise(*quantise(exact.read(0, exact.rows).x))
    )
    assert short.median_norm == exact.median_norm
