from pathlib import Path

import numpy as np

from jaxdiff.activations import Moments, Store, harvest


def test_two_processes_write_one_store_and_stream_together(
    in_processes, tmp_path, pair, documents, site, join
):
    here = Path(__file__).parent

    def words(i, port):
        return [str(here / "harvest_in_two.py"), str(i), str(port), str(tmp_path), str(here)]

    codes, text = in_processes(2, words, tmp_path)
    assert codes == [0, 0], text

    store = Store.open(tmp_path)
    from jaxdiff.config import HarvestConfig

    config = HarvestConfig(dtype="float32", chunk=16, ring=64)
    rows = harvest(pair, documents(22), site, config=config)
    want, got = join(rows), store.read(0, store.rows)
    assert (got.tokens == want.tokens).all() and (got.sequences == want.sequences).all()
    np.testing.assert_allclose(got.x, want.x, rtol=1e-5, atol=1e-6)
    assert store.documents == 22
    np.testing.assert_allclose(store.moments.m2, Moments.of(got.x, got.mask).m2, rtol=1e-6)

    # The median that outliers are measured by is the one over all processes.
    np.testing.assert_allclose(store.median_norm, rows.median_norm, rtol=1e-6)

    streams = [np.load(tmp_path / f"stream-{i}.npz") for i in range(2)]
    assert (streams[0]["scale"] == streams[1]["scale"]).all()
    np.testing.assert_allclose(streams[0]["scale"], store.normalization.scale, rtol=1e-5)
    difference = np.diff(got.x[got.mask].astype(np.float64), axis=1)[:, 0]
    scale = 1 / np.sqrt(np.square(difference - difference.mean(axis=0)).mean())
    for stream in streams:
        np.testing.assert_allclose(stream["scale_difference"], [scale], rtol=1e-5)
        np.testing.assert_allclose(
            stream["mean_difference"][0], difference.mean(axis=0), rtol=1e-4, atol=1e-6
        )
    tokens = [stream["tokens"] for stream in streams]
    assert tokens[0].shape == tokens[1].shape and tokens[0].shape[1] == 4
    known = set((want.sequences * 100 + want.positions)[want.mask].tolist())
    for part in tokens:
        assert set(part.ravel().tolist()) <= known
    assert not set(tokens[0].ravel().tolist()) & set(tokens[1].ravel().tolist())
