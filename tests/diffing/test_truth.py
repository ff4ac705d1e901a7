import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.diffing import Behaviour, auroc, truth
from jaxdiff.errors import JaxdiffError

NEW, GAIN, NEVER = (
    Behaviour(1, "refusal"),
    Behaviour(2, "formality", "gain"),
    Behaviour(7, "never seen"),
)


@pytest.fixture(scope="module")
def seen(batch_of):
    """240 rows of which a third is text; latent 0 and 1 fire on label 1, latent 2 on label 2."""
    rng = np.random.default_rng(0)
    roles = np.repeat([0, 3, 4], 80).astype(np.int32)
    labels = rng.choice([0, 1, 2, 3], 240).astype(np.int32)
    v = (rng.random((240, 5)) * (rng.random((240, 5)) < 0.2)).astype(np.float32)
    v[labels == 1, 0] += 2
    v[(labels == 1) & (rng.random(240) < 0.8), 1] += 1
    v[labels == 2, 2] += 1
    v[roles == 0, 0] += 3  # on text it fires everywhere
    mask = rng.random(240) < 0.9
    v[~mask] = 0
    batch = batch_of(np.zeros((240, 2, 1)), roles=roles, labels=labels, mask=mask)
    codes = truth.LabelledCodes()
    for start in range(0, 240, 60):
        part = slice(start, start + 60)
        codes(jax.tree.map(lambda a: a[part], batch), jnp.asarray(v[part]))  # noqa: B023
    return codes, v, batch


def _match(codes, exclusive, alive=None, threshold=0.9):
    alive = np.ones(5, bool) if alive is None else alive
    return truth.match(
        codes,
        (NEW, GAIN, NEVER),
        alive=alive,
        exclusive=np.isin(np.arange(5), exclusive),
        threshold=threshold,
    )


def test_a_new_behaviour_is_compared_with_chats_only_and_a_gain_with_everything(seen):
    codes, v, batch = seen
    (new, gain, _), areas = _match(codes, [0, 1])
    chat = batch.mask & (batch.roles != 0)
    np.testing.assert_allclose(areas[0], auroc(v[chat], batch.labels[chat] == 1))
    np.testing.assert_allclose(areas[1], auroc(v[batch.mask], batch.labels[batch.mask] == 2))
    assert (new.latent, new.best_any, new.found) == (0, 0, True)
    assert new.tokens == (chat & (batch.labels == 1)).sum()
    assert new.auroc == areas[0, 0] > 0.95
    # With text among the others latent 0 would not do.
    assert auroc(v[batch.mask], batch.labels[batch.mask] == 1)[0] < 0.9
    assert (gain.latent, gain.best_any, gain.found) == (None, 2, False)


def test_found_needs_the_verdict_and_the_auroc(seen):
    codes = seen[0]
    (other, *_), areas = _match(codes, [1])
    assert (other.latent, other.best_any) == (1, 0) and other.auroc == areas[0, 1]
    assert other.found == (areas[0, 1] >= 0.9)
    (none, *_), _ = _match(codes, [])
    assert none.latent is None and np.isnan(none.auroc) and not none.found
    assert none.best_any_auroc == areas[0, 0]
    (strict, *_), _ = _match(codes, [1], threshold=1.0)
    assert not strict.found


def test_dead_latents_and_unseen_labels_match_nothing(seen):
    matches, areas = _match(seen[0], [0, 1], alive=np.arange(5) != 0)
    assert np.isnan(areas[:, 0]).all() and matches[0].best_any == 1
    never = matches[2]
    assert never.tokens == 0 and never.latent is None and never.best_any is None
    assert np.isnan(areas[2]).all() and not never.found


def test_too_many_entries_are_refused(seen, monkeypatch):
    _, v, batch = seen
    monkeypatch.setattr(truth, "_LARGEST", 10)
    with pytest.raises(JaxdiffError, match="more than 10 active latents"):
        truth.LabelledCodes()(batch, jnp.asarray(v))
