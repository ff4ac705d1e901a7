import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.activations import Normalization
from jaxdiff.config import DiffConfig
from jaxdiff.diffing import CLASSES, VERDICTS, Behaviour, diff
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh
from jaxdiff.stats import InMemory

CONFIG = DiffConfig(batch=512, bootstrap=40, examples=2, window=3)
BEHAVIOURS = (Behaviour(1, "new one"), Behaviour(2, "old one", "gain"), Behaviour(3, "absent"))


@pytest.fixture(scope="module")
def data(planted):
    """Raw activations with another mean and scale for each model; row 0 is masked and NaN."""
    data = planted(rows=2000)
    labels = np.where(data.on[:, 4], 1, np.where(data.on[:, 2], 2, 0)).astype(np.int32)
    roles = np.where(data.batch.sequences % 3 == 0, 0, 4).astype(np.int32)
    labels[(roles == 0) & (labels == 1)] = 0
    mean = np.random.default_rng(1).normal(size=(2, 32)).astype(np.float32)
    data.normalization = Normalization(mean, np.array([0.5, 2.0], np.float32))
    x = np.asarray(data.normalization.invert(data.batch.x)).copy()
    mask = np.ones(2000, bool)
    x[0], mask[0] = np.nan, False
    data.batch = dataclasses.replace(data.batch, x=x, labels=labels, roles=roles, mask=mask)
    return data


def _diff(data, rows=None, **more):
    arguments = {"config": CONFIG, "behaviours": BEHAVIOURS, **more}
    rows = rows or InMemory.of(data.batch)
    return diff(data.dictionary, rows, normalization=data.normalization, **arguments)


@pytest.fixture(scope="module")
def result(data):
    return _diff(data)


def test_the_planted_difference_is_seen(data, result):
    expected = {"shared": "shared", "weak": "other", "ft_only": "ft_only", "base_only": "base_only"}
    assert result.classes.tolist() == [expected[name] for name in data.names]
    assert (result.verdict[data.names == "ft_only"] == "exclusive").all()
    assert result.firing.tokens == 1999 and result.sequences == 67
    new, old, absent = result.matches
    assert (new.latent, new.found) == (4, True)
    assert (old.latent, old.best_any) == (None, 2)
    assert absent.best_any is None


def test_raw_norms_undo_the_scales(data, result):
    """Norms 1 and 1 in the dictionary's space are 2 and 1/2 in the models' own (fault 14)."""
    shared = data.names == "shared"
    np.testing.assert_allclose(result.relative_norm[shared], 0.5, rtol=1e-6)
    np.testing.assert_allclose(result.relative_norm_raw[shared], 0.125, rtol=1e-6)


def test_json_is_strict_and_has_the_schema(result):
    got = json.loads(json.dumps(result.to_json(lambda token: f"<{token}>"), allow_nan=False))
    assert set(got) >= {"activation", "latents", "k", "l0", "threshold", "fve", "dead_fraction"}
    assert (got["alive"], got["tokens"], got["sequences"]) == (8, 1999, 67)
    assert tuple(got["counts"]) == CLASSES and sum(got["counts"].values()) == 8
    assert tuple(got["latent_scaling"]) == VERDICTS and sum(got["latent_scaling"].values()) == 8
    assert sum(got["latent_scaling_ft_only"].values()) == got["counts"]["ft_only"] == 2
    histogram = got["norm_histogram"]
    assert sum(histogram["counts"]) == 8
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    roles = ["text", "template", "system", "user", "assistant"]
    assert list(got["roles"]) == roles and got["roles"]["user"] == {"tokens": 0, "l0": None}
    assert [row["behaviour"] for row in got["truth"]] == ["new one", "old one", "absent"]
    assert got["truth"][0]["found"] and got["truth"][0]["auroc"] > 0.9
    absent = got["truth"][2]
    assert absent["latent"] is None and absent["auroc"] is None and absent["tokens"] == 0
    table = {row["latent"]: row for row in got["table"]}
    assert len(table) == 8
    assert [row["verdict"] for row in got["table"]] == sorted(
        (row["verdict"] for row in got["table"]), key=VERDICTS.index
    )
    assert table[4]["behaviour"] == "new one" and table[0]["behaviour"] is None
    assert table[4]["cosine"] is None and table[0]["cosine"] == 1
    assert (table[4]["side"], table[6]["side"]) == ("ft", "base")
    low, high = table[4]["nu_error"][1:]
    assert low < table[4]["nu_error"][0] < high
    assert sum(table[0]["roles"].values()) == pytest.approx(1, abs=1e-4)
    example = got["examples"]["4"][0]
    assert example["value"] == max(example["values"]) == example["values"][example["at"]]
    assert example["tokens"][0].startswith("<") and len(got["examples"]["4"]) == 2
    assert example["value"] == pytest.approx(table[4]["max_activation"], rel=1e-3)


def test_same_seed_same_result_and_a_mesh_changes_nothing(data, result):
    again = _diff(data)
    assert again.to_json() == result.to_json()
    mesh = _diff(data, mesh=make_mesh(data=4, latent=2))
    assert mesh.verdict.tolist() == result.verdict.tolist()
    for name in ("nu_reconstruction", "nu_error", "sequences"):
        np.testing.assert_allclose(
            getattr(mesh.scaling, name), getattr(result.scaling, name), rtol=1e-3, atol=1e-5
        )
    np.testing.assert_allclose(mesh.behaviour_auroc, result.behaviour_auroc, atol=1e-3)


def test_dead_latents_have_no_row_and_no_verdict_count(data):
    d = data.dictionary
    nothing = dataclasses.replace(d, b_enc=jnp.full_like(d.b_enc, -1e3))
    got = diff(
        nothing,
        InMemory.of(data.batch),
        normalization=data.normalization,
        config=CONFIG,
        behaviours=BEHAVIOURS,
    ).to_json()
    json.dumps(got, allow_nan=False)
    assert (got["alive"], got["dead_fraction"], got["counts"]["dead"]) == (0, 1, 8)
    assert got["table"] == [] and got["examples"] == {} and got["l0"] == 0
    assert sum(got["latent_scaling"].values()) == 0
    assert got["truth"][0]["best_any"]["latent"] is None


def test_without_behaviours_and_examples(data):
    got = _diff(
        data, behaviours=(), config=DiffConfig(batch=512, bootstrap=40, examples=0)
    ).to_json()
    assert got["truth"] == [] and len(got["table"]) == 8
    assert all(items == [] for items in got["examples"].values())


def test_a_decoupled_dictionary(data):
    d = data.dictionary
    decoupled = dataclasses.replace(
        d, code_norm="decoupled", activation="batch_topk", threshold=jnp.full(2, 0.05)
    )
    got = diff(decoupled, InMemory.of(data.batch), normalization=data.normalization, config=CONFIG)
    assert (got.verdict[data.names == "ft_only"] == "exclusive").all()
    assert (got.verdict[data.names == "shared"] == "shared").all()
    json.dumps(got.to_json(), allow_nan=False)


def test_bad_input_is_named(data):
    rows = InMemory.of(data.batch)
    normalization = data.normalization
    d = data.dictionary
    single = dataclasses.replace(d, W_enc=d.W_enc[:1], W_dec=d.W_dec[:, :1], b_dec=d.b_dec[:1])
    with pytest.raises(JaxdiffError, match="two models, this one reads 1"):
        diff(single, rows, normalization=normalization)
    narrow = dataclasses.replace(
        d, W_enc=d.W_enc[:, :5], W_dec=d.W_dec[..., :5], b_dec=d.b_dec[:, :5]
    )
    with pytest.raises(JaxdiffError, match=r"\[2, 5\].*\[2, 32\]"):
        diff(narrow, rows, normalization=normalization)
    masked = dataclasses.replace(data.batch, mask=np.zeros(2000, bool))
    with pytest.raises(JaxdiffError, match="all 2000 rows are masked"):
        diff(d, InMemory.of(masked), normalization=normalization, config=CONFIG)
    empty = jax.tree.map(lambda a: a[:0], data.batch)
    with pytest.raises(JaxdiffError, match="no activations"):
        diff(d, InMemory.of(empty), normalization=normalization)


def test_reads_a_store(data, result, tmp_path):
    from jaxdiff.activations import Recorded, Store, write_store
    from jaxdiff.config import HarvestConfig

    rows = Recorded([data.batch], site="blocks.0.resid_post")
    write_store(tmp_path / "store", rows, config=HarvestConfig(dtype="float32", chunk=300))
    got = _diff(data, Store.open(tmp_path / "store"))
    assert got.verdict.tolist() == result.verdict.tolist()
    np.testing.assert_allclose(got.behaviour_auroc, result.behaviour_auroc)
    mine, theirs = got.to_json()["examples"], result.to_json()["examples"]
    assert mine == theirs
