"""Weighted row gathers of every implementation against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jaxdiff.kernels.dispatch import dispatch
from jaxdiff.kernels.weighted_gather import tpu, weighted_gather, xla

# With what a kernel reads before it was written set to NaN, and copies done when waited for.
SIMULATED = pltpu.InterpretParams(dma_execution_mode="on_wait", detect_races=True)
IMPLEMENTATIONS = {
    "xla": xla.weighted_gather,
    "pallas_tpu": functools.partial(tpu.weighted_gather, interpret=True),
    "pallas_tpu simulated": functools.partial(tpu.weighted_gather, interpret=SIMULATED),
}
# Rows, width, groups, entries; windows that groups share, long groups, a single entry. Only columns
# that two registers' lanes hold are packed.
CASES = {
    "aligned": ((16, 128, 64, 256), jnp.float32, False),
    "odd, skewed": ((37, 200, 130, 300), jnp.float32, True),
    "one entry": ((9, 1, 3, 1), jnp.float32, False),
    "long groups": ((5, 130, 2, 700), jnp.bfloat16, True),
    "packed": ((12, 256, 9, 300), jnp.bfloat16, False),
}


@pytest.mark.parametrize(
    "name, case", [*(("pallas_tpu", case) for case in CASES), ("xla", "odd, skewed")]
)
def test_values(draw, float64_sums, name, case):
    shape, dtype, skewed = CASES[case]
    given = draw(*shape, dtype, skewed=skewed)
    out = IMPLEMENTATIONS[name](*given)
    np.testing.assert_allclose(out, float64_sums(given), atol=2e-5)


def test_copies_are_waited_for(draw, float64_sums, monkeypatch):
    monkeypatch.setattr(tpu, "_BLOCK", 8)
    given = draw(12, 128, 10, 150)
    out = IMPLEMENTATIONS["pallas_tpu simulated"](*given)
    np.testing.assert_allclose(out, float64_sums(given), atol=2e-5)


def test_not_a_number_stays_in_its_group(draw, float64_sums):
    given = draw(200, 128, 6, 40)
    first = given.indices[given.offsets[3]]
    given = given._replace(source=given.source.at[first].set(jnp.nan))
    out = np.asarray(IMPLEMENTATIONS["pallas_tpu"](*given))
    expected = np.isnan(float64_sums(given))
    np.testing.assert_array_equal(np.isnan(out), expected)
    assert 0 < expected[:, 0].sum() < 5


def test_gradient(draw):
    given = draw(11, 7, 6, 40)
    pulled = jnp.asarray(np.random.default_rng(1).normal(size=(6, 7)), jnp.float32)

    def product(source, weights):
        out = weighted_gather(source, given.indices, weights, given.offsets)
        return jnp.sum(out * pulled)

    of_source, of_weights = jax.jit(jax.grad(product, argnums=(0, 1)))(given.source, given.weights)
    source, indices, weights, offsets = (np.asarray(a) for a in given)
    group = np.searchsorted(offsets[1:], np.arange(40), side="right")
    expected, dots = np.zeros((11, 7)), np.zeros(40)
    for i in np.flatnonzero(group < 6):
        expected[indices[i]] += weights[i] * np.asarray(pulled, np.float64)[group[i]]
        dots[i] = np.asarray(pulled, np.float64)[group[i]] @ source[indices[i]]
    np.testing.assert_allclose(of_source, expected, atol=1e-5)
    np.testing.assert_allclose(of_weights, dots, atol=1e-5)


def test_the_platform_decides(draw):
    given = draw(16, 128, 8, 30)
    traced = jax.jit(weighted_gather).trace(*given)
    assert "custom_call" not in traced.lower().as_text()
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_a_name_insists(draw):
    given = draw(16, 128, 8, 30)
    with pytest.raises(ValueError, match="(?i)interpret"):
        weighted_gather(*given, "pallas_tpu")
    with pytest.raises(ValueError, match="no implementation 'pallas_gpu'; there is xla"):
        dispatch({"xla": xla.weighted_gather}, "pallas_gpu", *given)
