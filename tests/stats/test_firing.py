import jax
import numpy as np

from jaxdiff.stats import Firing


def test_counts_and_values_by_role(case):
    v, roles, mask = np.asarray(case.encoded.v), case.batch.roles, case.batch.mask
    statistic = Firing(v.shape[1])
    got = statistic.finalize(jax.jit(lambda e: statistic.update(statistic.init(), e))(case.encoded))
    assert got.tokens == mask.sum()
    np.testing.assert_array_equal(got.counts, (v > 0).sum(0))
    np.testing.assert_allclose(got.l0, (v > 0).sum() / mask.sum())
    np.testing.assert_allclose(got.max, v.max(0))
    np.testing.assert_allclose(got.mean, v.sum(0) / np.maximum((v > 0).sum(0), 1), rtol=1e-6)
    for role in range(5):
        rows = mask & (roles == role)
        assert got.role_tokens[role] == rows.sum()
        np.testing.assert_allclose(got.role_l0[role], (v[rows] > 0).sum() / rows.sum())
        share = (v[rows] > 0).sum(0) / np.maximum((v > 0).sum(0), 1)
        np.testing.assert_allclose(got.role_share[role], share)
