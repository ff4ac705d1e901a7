import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from jaxdiff.diffing import auroc, sparse_auroc


def _values(levels, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.integers(1, levels + 1, (150, 7)) / levels * (rng.random((150, 7)) < 0.4)
    values[:, 3] = 0
    return values.astype(np.float32), rng


@pytest.mark.parametrize("levels", [1, 4, 10_000])
def test_equals_mann_whitney_with_ties(levels):
    values, rng = _values(levels)
    positive = rng.random(150) < 0.2
    values[positive, 0] += 0.3
    got = auroc(values, positive)
    n = positive.sum() * (~positive).sum()
    expected = [mannwhitneyu(c[positive], c[~positive]).statistic / n for c in values.T]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert got[3] == 0.5


def test_every_label_against_all_other_rows():
    values, rng = _values(50)
    labels = rng.choice([0, 1, 2, 4], 150)
    rows, latents = np.nonzero(values)
    counts = np.bincount(labels, minlength=6)
    got = sparse_auroc(latents, values[rows, latents], labels[rows], counts, 7)
    assert got.shape == (6, 7)
    for label in (0, 1, 2, 4):
        np.testing.assert_allclose(got[label], auroc(values, labels == label), rtol=1e-12)
    assert np.isnan(got[[3, 5]]).all()


@pytest.mark.parametrize("positive", [np.zeros(150, bool), np.ones(150, bool)])
def test_without_both_kinds_of_rows_there_is_no_auroc(positive):
    assert np.isnan(auroc(_values(5)[0], positive)).all()


def test_nothing_active():
    got = auroc(np.zeros((4, 2), np.float32), np.array([True, False, False, True]))
    np.testing.assert_array_equal(got, [0.5, 0.5])
