"""What agreement 4 asks of every statistic."""

import jax
import numpy as np
import pytest

from jaxdiff.diffing import scaling_statistic
from jaxdiff.stats import Firing, Strongest, Variance


def _statistics(case):
    latents, models, width = case.dictionary.W_dec.shape
    scaling = scaling_statistic(case.dictionary.W_dec, resamples=7, key=jax.random.key(3))
    return [Variance(models, width), Firing(latents), Strongest(latents, 3), scaling]


def _rows(encoded, start, stop):
    return jax.tree.map(lambda a: a[start:stop], encoded)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("name", ["case", "decoupled"])
def test_merge_of_shards_is_the_whole(which, name, request):
    data = request.getfixturevalue(name)
    statistic = _statistics(data)[which]
    update = jax.jit(lambda state, batch: statistic.update(state, batch))
    merge = jax.jit(lambda x, y: statistic.merge(x, y))
    empty, a, b = statistic.init(), _rows(data.encoded, 0, 120), _rows(data.encoded, 120, 240)
    whole, second = update(update(empty, a), b), update(empty, b)
    merged = merge(update(empty, a), second)
    assert jax.tree.structure(merged) == jax.tree.structure(whole)
    results = [vars(statistic.finalize(state)).values() for state in (whole, merged)]
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)
    # An empty shard changes nothing.
    for same in (merge(empty, second), merge(second, empty)):
        for mine, theirs in zip(jax.tree.leaves(same), jax.tree.leaves(second), strict=True):
            np.testing.assert_array_equal(mine, theirs)
