"""More sources than two: several sites, several models, and both."""

import dataclasses

import numpy as np
import pytest

from jaxdiff.activations import ModelPair, StreamSource, harvest
from jaxdiff.errors import JaxdiffError

SITES = "blocks.0.resid_post, blocks.1.mlp_out"


def test_each_model_at_each_site_is_a_source(tiny, documents, config, join):
    models = ModelPair((tiny(0), tiny(1), tiny(2)))
    text = documents(6)
    both = harvest(models, text, "blocks.0.resid_post,blocks.1.mlp_out", config=config)
    assert both.site == SITES
    got = join(both)
    assert got.x.shape[1] == 6
    for i, site in enumerate(SITES.split(", ")):
        for m, lm in enumerate(models.models):
            alone = join(harvest(ModelPair((lm,)), text, site, config=config))
            np.testing.assert_allclose(got.x[:, 3 * i + m], alone.x[:, 0], rtol=2e-5, atol=2e-6)
    assert both.moments.mean.shape == (6, got.x.shape[2])
    wide = got.x[got.mask].astype(np.float64)
    np.testing.assert_allclose(both.moments.mean, wide.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_an_outlier_of_one_source_masks_the_row(pair, documents, config, join):
    config = config.model_copy(update={"outlier": 1.5})
    text = documents(8)
    apart = [join(harvest(pair, text, site, config=config)) for site in SITES.split(", ")]
    got = join(harvest(pair, text, SITES, config=config))
    assert (got.mask == (apart[0].mask & apart[1].mask)).all()
    assert (apart[0].mask != apart[1].mask).any()


def test_they_stream(pair, documents, config):
    source = StreamSource(pair, documents(20), SITES, config=config)
    assert source.shape[0] == 4 and source.normalization.scale.shape == (4,)
    assert next(source.batches(8, seed=0)).x.shape[:2] == (8, 4)


def test_values_that_are_not_finite_are_named_with_model_and_site(tiny, documents, config):
    third = tiny(2)
    table = third.params["embedding"] * np.float32(np.nan)
    broken = dataclasses.replace(third, params={**third.params, "embedding": table})
    models = ModelPair((tiny(0), tiny(1), broken))
    with pytest.raises(JaxdiffError, match="model 3's activations at blocks.0.resid_post"):
        list(harvest(models, documents(4), SITES, config=config))


def test_sites_of_other_widths_are_refused(pair, documents, config):
    with pytest.raises(JaxdiffError, match="different width: .*resid_post 8.*mlp.post"):
        harvest(pair, documents(4), "blocks.0.resid_post, blocks.0.mlp.post", config=config)
