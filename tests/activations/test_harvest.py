import json
from dataclasses import replace

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.activations import ModelPair, Moments, harvest
from jaxdiff.activations._program import observe
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh
from jaxdiff.models import run


def scale_token(lm, token, factor):
    table = lm.params["embedding"]
    return replace(lm, params={**lm.params, "embedding": table.at[token].multiply(factor)})


def test_rows_are_what_each_model_computes_on_each_document_alone(
    pair, documents, site, config, join
):
    alone = jax.jit(lambda lm, tokens: run(lm, tokens, (site,), logits=False)[1][site])
    text = documents(10)
    got = join(harvest(pair, text, site, config=config))
    row = 0
    for batch in text:
        for b, n in enumerate((batch.sequences >= 0).sum(axis=1)):
            rows = slice(row, row + int(n))
            for m, lm in enumerate(pair.models):
                # What follows the document cannot be seen from inside it.
                want = alone(lm, jnp.asarray(batch.tokens[b : b + 1]))[0, :n]
                np.testing.assert_allclose(got.x[rows, m], want, rtol=2e-5, atol=2e-6)
            for name in ("tokens", "roles", "sequences", "positions", "labels"):
                assert (getattr(got, name)[rows] == getattr(batch, name)[b, :n]).all()
            row += int(n)
    assert row == len(got.tokens)


def test_packed_documents_do_not_see_each_other(pair, documents, site, config, join, equal):
    text = documents(2, batch=2)[0]
    a, b = (int((s >= 0).sum()) for s in text.sequences)
    packed = jax.tree.map(lambda t: np.concatenate([t[0, :a], t[1, :b]])[None], text)
    got = join(harvest(pair, [packed], site, config=config))
    want = join(harvest(pair, [text], site, config=config))
    assert equal(replace(got, x=want.x), want)
    np.testing.assert_allclose(got.x, want.x, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("skip", "mask_bos", "first"), [(0, True, 1), (0, False, 0), (2, True, 3), (2, False, 2)]
)
def test_first_positions_are_masked_not_deleted(
    pair, documents, site, config, join, skip, mask_bos, first
):
    config = config.model_copy(update={"skip": skip, "mask_bos": mask_bos})
    got = join(harvest(pair, documents(6), site, config=config))
    assert (got.mask == (got.positions >= first)).all()
    assert (got.positions == 0).sum() == 6


def test_outliers_of_either_model_are_masked(pair, documents, site, config, join):
    # Token 7 has an embedding that is 1000 times as long, in the fine-tuned model only.
    pair = ModelPair((pair.models[0], scale_token(pair.models[1], 7, 1000.0)))
    config = config.model_copy(update={"outlier": 10.0})
    rows = harvest(pair, documents(12), "embed", config=config)
    got = join(rows)
    assert (got.mask == ((got.positions > 0) & (got.tokens != 7))).all()
    assert (got.tokens[got.positions > 0] == 7).any()
    used = got.positions > 0
    norms = np.linalg.norm(got.x[used].astype(np.float64), axis=-1)
    np.testing.assert_allclose(rows.median_norm, np.median(norms, axis=0), rtol=1e-6)


def test_moments_are_those_of_the_usable_rows(pair, documents, site, config, join):
    rows = harvest(pair, documents(13), site, config=config)
    got = join(rows)
    want = Moments.of(got.x, got.mask)
    assert rows.moments.count == want.count
    np.testing.assert_allclose(rows.moments.mean, want.mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(rows.moments.m2, want.m2, rtol=1e-6)


def test_moments_measure_the_stored_values(pair, documents, site, config, join):
    config = config.model_copy(update={"dtype": "bfloat16"})
    rows = harvest(pair, documents(13), site, config=config)
    got = join(rows)
    assert got.x.dtype == jnp.bfloat16
    want = Moments.of(got.x, got.mask)
    np.testing.assert_allclose(rows.moments.mean, want.mean, rtol=1e-5, atol=1e-7)


def test_token_map_changes_what_the_base_reads_and_nothing_else(
    pair, documents, site, config, join
):
    text = documents(8)
    mapped = ModelPair(pair.models, {t: 3 for t in range(10, 20)})
    got = join(harvest(mapped, text, site, config=config))
    plain = join(harvest(pair, text, site, config=config))
    replaced = [
        replace(b, tokens=np.where((b.tokens >= 10) & (b.tokens < 20), 3, b.tokens)) for b in text
    ]
    want = join(harvest(pair, replaced, site, config=config))
    assert (got.x[:, 0] == want.x[:, 0]).all()
    assert (got.x[:, 1] == plain.x[:, 1]).all()
    assert (got.x[:, 0] != plain.x[:, 0]).any()
    assert (got.tokens == plain.tokens).all()


def test_the_next_batch_is_dispatched_before_one_is_handed_out(pair, documents, site, config):
    taken = []

    class Text(list):
        def __getitem__(self, index):
            taken.append(index)
            return super().__getitem__(index)

    rows = harvest(pair, Text(documents(16)), site, config=config)
    next(rows)
    del taken[:]
    assert int(next(rows).sequences.max()) == 7
    assert taken == [2]


def test_nothing_after_the_site_is_computed(pair, documents, config):
    batch = documents(4)[0]
    tokens = pair.tokens(batch.tokens)

    def flops(site):
        limit = np.full(2, np.inf, np.float32)
        args = (pair.models, tokens, batch.sequences, batch.positions, np.int32(1), limit)
        lowered = observe.lower(*args, site=site, dtype="float32", rows=None)
        return lowered.cost_analysis()["flops"]

    assert flops("embed") < flops("blocks.0.attn_out") < flops("blocks.0.resid_post")
    assert flops("blocks.0.resid_post") < 0.8 * flops("logits")


def test_a_restored_harvest_goes_on_bit_identically(pair, documents, site, config, equal):
    text = documents(22)
    config = config.model_copy(update={"outlier": 1.2})
    rows = harvest(pair, text, site, config=config)
    states, want = [rows.get_state()], []
    for batch in rows:
        want.append(batch)
        states.append(rows.get_state())
    for at in (0, 3, len(want)):
        again = harvest(pair, text, site, config=config)
        again.set_state(json.loads(json.dumps(states[at])))
        got = list(again)
        assert len(got) == len(want) - at
        assert all(equal(a, b) for a, b in zip(got, want[at:], strict=True))
        assert again.moments.to_json() == rows.moments.to_json()


def test_devices_share_the_rows(pair, documents, site, config, join, equal):
    # 3 rows a batch over 8 devices: rows of padding are added and removed again.
    text = documents(11, batch=3)
    one = join(harvest(pair, text, site, config=config))
    rows = harvest(pair, text, site, config=config, mesh=make_mesh(4, 2))
    eight = join(rows)
    np.testing.assert_allclose(eight.x, one.x, rtol=1e-5, atol=1e-6)
    assert equal(replace(eight, x=one.x), one)
    want = Moments.of(one.x, one.mask)
    np.testing.assert_allclose(rows.moments.m2, want.m2, rtol=1e-5)


def test_one_model_alone_is_an_sae_source(pair, documents, site, config):
    rows = harvest(ModelPair(pair.models[:1], names=("model",)), documents(4), site, config=config)
    assert next(rows).x.shape[1:] == (1, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 41}, "different vocabularies: base 40, ft 41"),
        ({"d_model": 16}, "different shape at blocks.1.resid_post: base (8,), ft (16,)"),
        ({"n_layers": 1}, "no site 'blocks.1.resid_post'"),
    ],
)
def test_models_that_cannot_be_compared(tiny, documents, site, config, change, message):
    bad = ModelPair((tiny(0), tiny(1, **change)))
    with pytest.raises(JaxdiffError) as caught:
        harvest(bad, documents(4), site, config=config)
    assert message in str(caught.value)


def test_models_of_other_depth_and_heads_are_fine(tiny, documents, config):
    pair = ModelPair((tiny(0), tiny(1, n_layers=2, n_heads=4, d_mlp=8)))
    assert next(harvest(pair, documents(4), "blocks.0.resid_mid", config=config)).x.shape[1] == 2


def test_a_token_map_outside_the_vocabulary(pair, documents, site, config):
    bad = ModelPair(pair.models, {3: 40})
    with pytest.raises(JaxdiffError, match="token 40 is not in the models' vocabulary of 40"):
        harvest(bad, documents(4), site, config=config)


def test_a_token_outside_the_vocabulary(pair, documents, site, config):
    text = [replace(b, tokens=b.tokens + 1) for b in documents(40)]
    with pytest.raises(JaxdiffError, match="token 40 is not in the models' vocabulary"):
        list(harvest(pair, text, site, config=config))


def test_activations_that_are_not_finite_are_named(pair, documents, config):
    bad = ModelPair((pair.models[0], scale_token(pair.models[1], 7, np.nan)))
    # At a later site attention would carry it to earlier tokens, as 0 * NaN.
    text = documents(12)
    where = next(b for b in text if (b.tokens == 7).any())
    at = tuple(np.argwhere(where.tokens == 7)[0])
    with pytest.raises(JaxdiffError) as caught:
        list(harvest(bad, text, "embed", config=config))
    assert str(caught.value).startswith(
        f"the ft model's activations are not finite: sequence {where.sequences[at]}, "
        f"position {where.positions[at]}, token 7\n  where: embed"
    )


def test_an_empty_corpus(pair, documents, site, config):
    nothing = grain.MapDataset.range(4)[:0].to_iter_dataset()
    with pytest.raises(JaxdiffError, match="the corpus is empty"):
        harvest(pair, [], site, config=config)
    with pytest.raises(JaxdiffError, match="the corpus is empty"):
        next(harvest(pair, nothing, site, config=config))
