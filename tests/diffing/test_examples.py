import numpy as np
import pytest

from jaxdiff.diffing import examples
from jaxdiff.stats import InMemory, StrongestRows

SPACE = {"mean": np.zeros((2, 32), np.float32), "scale": np.ones(2, np.float32)}


class Counting:
    """Rows in memory that remember which were read."""

    def __init__(self, batch):
        self._inner, self.read_rows = InMemory.of(batch), set()
        self.rows = self._inner.rows

    def read(self, start, stop):
        self.read_rows |= set(range(start, stop))
        return self._inner.read(start, stop)


@pytest.fixture(scope="module")
def data(planted):
    return planted(rows=400, length=25)


def _collect(data, rows, window, batch, store=None):
    rows = np.array(rows)
    strongest = StrongestRows(np.ones(rows.shape), rows)
    latents = np.arange(len(rows))
    return examples.collect(
        store or InMemory.of(data.batch),
        data.dictionary,
        strongest,
        latents,
        **SPACE,
        window=window,
        batch=batch,
    )


@pytest.mark.parametrize("batch", [16, 64, 512])
def test_windows_are_the_documents_tokens_and_values(data, batch):
    rows = [[3, 399], [24, 25], [110, -1]]
    got = _collect(data, rows, 4, batch)
    x, W = data.batch.x, np.asarray(data.dictionary.W_enc)
    f = np.maximum(np.einsum("rmd,mdl->rl", x, W) - 0.2, 0)
    v = f * np.linalg.norm(data.dictionary.W_dec, axis=2).sum(1)
    for latent, centers in enumerate(rows):
        centers = [row for row in centers if row >= 0]
        assert len(got[latent]) == len(centers)
        for example, row in zip(got[latent], centers, strict=True):
            document = row // 25
            start, stop = max(row - 4, document * 25), min(row + 5, document * 25 + 25)
            assert (example.sequence, example.at) == (document, row - start)
            np.testing.assert_array_equal(example.tokens, data.batch.tokens[start:stop])
            np.testing.assert_array_equal(example.roles, data.batch.roles[start:stop])
            np.testing.assert_allclose(example.values, v[start:stop, latent], atol=1e-5)
            assert example.value == example.values[example.at]


def test_only_the_rows_around_are_read(data):
    store = Counting(data.batch)
    _collect(data, [[50, 52], [200, -1]], 3, 64, store)
    assert store.read_rows == set(range(47, 56)) | set(range(197, 204))


def test_without_strongest_rows_there_are_no_examples(data):
    assert _collect(data, [[-1], [-1]], 3, 64) == {0: (), 1: ()}
    assert _collect(data, np.zeros((2, 0), int), 3, 64) == {0: (), 1: ()}


def test_special_latents_come_first_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(examples, "MOST_LATENTS", 10)
    alive = np.arange(40) % 2 == 0
    special = np.isin(np.arange(40), [1, 6, 30])
    chosen = examples.choose_latents(alive, special, seed=0)
    assert len(chosen) == 10 and {6, 30} <= set(chosen) and alive[chosen].all()
    assert (chosen != examples.choose_latents(alive, special, seed=1)).any()
    assert len(examples.choose_latents(alive & (np.arange(40) < 12), special, seed=0)) == 6
