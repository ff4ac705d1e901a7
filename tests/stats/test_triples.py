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
    a, b = _rows(data.encoded, 0, 100), _rows(data.encoded, 100, 240)
    empty = statistic.init()
    update = jax.jit(lambda state, batch: statistic.update(state, batch))
    whole = update(update(empty, a), b)
    merged = jax.jit(lambda x, y: statistic.merge(x, y))(update(empty, a), update(empty, b))
    assert jax.tree.structure(merged) == jax.tree.structure(whole)
    results = [statistic.finalize(state) for state in (whole, merged, update(empty, data.encoded))]
    for other in results[1:]:
        for mine, theirs in zip(vars(results[0]).values(), vars(other).values(), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("which", range(4))
def test_merge_with_nothing_changes_nothing(which, case):
    statistic = _statistics(case)[which]
    state = statistic.update(statistic.init(), case.encoded)
    for merged in (
        statistic.merge(statistic.init(), state),
        statistic.merge(state, statistic.init()),
    ):
        for mine, theirs in zip(jax.tree.leaves(merged), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(mine, theirs)
