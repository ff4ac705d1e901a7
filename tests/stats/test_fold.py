import jax
import numpy as np
import pytest

from jaxdiff.diffing import scaling_statistic
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh
from jaxdiff.stats import Firing, InMemory, Strongest, Variance, blocks, fold, statistic


@pytest.fixture(scope="module")
def statistics(case):
    latents, models, width = case.dictionary.W_dec.shape
    return {
        "variance": Variance(models, width),
        "firing": Firing(latents),
        "strongest": Strongest(latents, 3),
        "scaling": scaling_statistic(case.dictionary.W_dec, resamples=5, key=jax.random.key(0)),
    }


def _fold(case, statistics, size, **more):
    cut = blocks(InMemory.of(case.batch), size)
    return fold(statistics, cut, dictionary=case.dictionary, **case.space, **more)


def _same(a, b):
    for name in a:
        for mine, theirs in zip(vars(a[name]).values(), vars(b[name]).values(), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)


def test_the_block_size_does_not_matter(case, statistics):
    _same(_fold(case, statistics, 240), _fold(case, statistics, 64))


def test_a_mesh_gives_the_same(case, statistics):
    mesh = make_mesh(data=8, latent=1)
    # 60 rows do not divide by 8 devices.
    _same(_fold(case, statistics, 64), _fold(case, statistics, 60, mesh=mesh))


def test_rows_are_split_over_the_data_axis(case):
    placed = statistic._place(
        next(blocks(InMemory.of(case.batch), 60)), make_mesh(data=8, latent=1)
    )
    assert {shard.data.shape[0] for shard in placed.x.addressable_shards} == {8}


def test_compiles_once_for_all_blocks_and_dictionaries(case, statistics):
    _fold(case, statistics, 64)
    before = statistic._step._cache_size()
    other = jax.tree.map(lambda a: a * np.float32(1.01), case.dictionary)
    fold(
        statistics,
        blocks(InMemory.of(case.batch), 64),
        dictionary=other,
        **case.space,
    )
    assert statistic._step._cache_size() == before


def test_watchers_see_every_row(case, statistics):
    seen = []
    _fold(case, statistics, 64, watch=(lambda batch, v: seen.append(np.asarray(v)[batch.mask]),))
    np.testing.assert_allclose(
        np.concatenate(seen), np.asarray(case.encoded.v)[case.batch.mask], rtol=1e-5, atol=1e-6
    )


def test_progress_counts_rows(case, statistics, capsys):
    _fold(case, statistics, 64, total=240, title="counting")
    assert "counting: 240/240 tokens" in capsys.readouterr().err


def test_nothing_to_fold_is_an_error(case, statistics):
    with pytest.raises(JaxdiffError, match="no activations"):
        fold(statistics, [], dictionary=case.dictionary, **case.space)
