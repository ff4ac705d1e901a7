import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxdiff import dictionaries
from jaxdiff.stats import encode


def test_masked_rows_are_zero_and_the_others_normalised(case):
    batch, space, got = case.batch, case.space, case.encoded
    for part in (got.x, got.reconstruction, got.f, got.v):
        assert not np.asarray(part)[~batch.mask].any()
    x = (batch.x[batch.mask] - space["mean"][None]) * space["scale"][None, :, None]
    np.testing.assert_allclose(np.asarray(got.x)[batch.mask], x, rtol=1e-6)
    f = dictionaries.encode(case.dictionary, jnp.asarray(x))
    np.testing.assert_allclose(np.asarray(got.f)[batch.mask], f, rtol=1e-5, atol=1e-6)
    assert 0.5 < np.count_nonzero(got.f) / batch.mask.sum() < 8


def test_v_is_the_ranking_key_of_what_is_active(case, decoupled):
    norms = np.asarray(dictionaries.code_norms(case.dictionary))
    np.testing.assert_allclose(case.encoded.v, case.encoded.f * norms[None], rtol=1e-6)
    f, norms = (
        np.asarray(decoupled.encoded.f),
        np.asarray(dictionaries.code_norms(decoupled.dictionary)),
    )
    assert f.ndim == 3 and (f[:, 0] != f[:, 1]).any()
    largest = np.maximum(f[:, 0] * norms[:, 0], f[:, 1] * norms[:, 1])
    np.testing.assert_allclose(decoupled.encoded.v, largest, rtol=1e-6)


def test_stored_bfloat16_is_computed_in_float32(case):
    half = dataclasses.replace(case.batch, x=case.batch.x.astype(jnp.bfloat16))
    space = {name: jnp.asarray(value) for name, value in case.space.items()}
    got = encode(case.dictionary, half, case.encoded.rows, **space)
    assert got.x.dtype == got.f.dtype == jnp.float32
    np.testing.assert_allclose(got.x, case.encoded.x, atol=0.03)
