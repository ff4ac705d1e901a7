import numpy as np

from jaxdiff.diffing import classes, cosine, relative_norm, sides


def test_relative_norm_is_one_for_fine_tuned_only():
    norms = np.array([[0, 2], [2, 0], [1, 1], [0.5, 1], [1, 0.2], [0, 0]], np.float32)
    got = relative_norm(norms)
    np.testing.assert_allclose(got, [1, 0, 0.5, 0.75, 0.1, np.nan], rtol=1e-6)
    # A gain g in the base puts a latent at 1 - g / 2 (crosscoders.md 2.1).
    gains = np.linspace(0, 1, 11)
    np.testing.assert_allclose(relative_norm(np.stack([gains, np.ones(11)], 1)), 1 - gains / 2)


def test_classes_are_the_papers_intervals():
    values = np.array([0, 0.1, 0.11, 0.39, 0.4, 0.6, 0.61, 0.89, 0.9, 1])
    expected = ["base_only"] * 2 + ["other"] * 2 + ["shared"] * 2 + ["other"] * 2 + ["ft_only"] * 2
    assert classes(values).tolist() == expected
    assert classes(values, np.arange(10) != 9).tolist() == [*expected[:9], "dead"]


def test_sides_and_cosine():
    assert sides(np.array([[1.0, 2], [2, 1], [1, 1]])).tolist() == [1, 0, 1]
    decoder = np.array([[[1, 0], [2, 0]], [[1, 0], [0, 3]], [[1, 1], [-2, -2]], [[0, 0], [1, 0]]])
    np.testing.assert_allclose(cosine(decoder.astype(np.float32)), [1, 0, -1, np.nan], atol=1e-12)
