"""Selection against a stable sort in NumPy, with ties, zeros and too few positive keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxdiff.kernels.largest import largest, largest_per_row

from jaxdiff.mesh import make_mesh

pytestmark = pytest.mark.smoke

select = jax.jit(largest)
select_in_rows = jax.jit(largest_per_row)


def cases():
    rng = np.random.default_rng(0)
    for i in range(60):
        if i % 3 == 0:
            keys = rng.integers(-3, 6, (6, 8)).astype(np.float32)  # ties, zeros, negatives
        elif i % 3 == 1:
            keys = np.maximum(rng.normal(size=(6, 8)), 0).astype(np.float32)
        else:
            keys = (rng.random((6, 8)) < 0.2) * np.float32(10.0) ** rng.uniform(-30, 30, (6, 8))
            keys = keys.astype(np.float32)
        yield keys, int(rng.integers(0, 52))


def test_marks_what_a_stable_sort_marks(brute_force):
    for keys, n in cases():
        np.testing.assert_array_equal(select(keys, jnp.int32(n)), brute_force(keys, n))


def test_rows_are_independent(brute_force):
    for keys, n in cases():
        expected = np.concatenate([brute_force(row[None], n % 9) for row in keys])
        np.testing.assert_array_equal(select_in_rows(keys, jnp.int32(n % 9)), expected)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_value_everywhere(brute_force, value):
    keys = np.full((6, 8), value, np.float32)
    np.testing.assert_array_equal(select(keys, jnp.int32(11)), brute_force(keys, 11))


def test_infinity_is_selected_and_nan_is_not():
    keys = np.zeros((6, 8), np.float32)
    keys[2, :4] = 1.0, np.nan, np.inf, -np.inf
    assert np.argwhere(np.asarray(select(keys, jnp.int32(1)))).tolist() == [[2, 2]]
    assert np.argwhere(np.asarray(select(keys, jnp.int32(4)))).tolist() == [[2, 0], [2, 2]]


@pytest.mark.parametrize("data, latent", [(2, 4), (8, 1), (1, 8)])
def test_same_on_every_mesh(brute_force, data, latent):
    mesh = make_mesh(data, latent)
    rng = np.random.default_rng(1)
    for keys in (rng.integers(0, 4, (8, 16)), np.maximum(rng.normal(size=(8, 16)), 0)):
        keys = keys.astype(np.float32)
        placed = jax.device_put(keys, NamedSharding(mesh, P("data", "latent")))
        for n in (1, 20, 77, 128):
            np.testing.assert_array_equal(select(placed, jnp.int32(n)), brute_force(keys, n))


def test_no_sort_or_scatter_is_compiled():
    shapes = jax.ShapeDtypeStruct((16, 64), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    text = jax.jit(largest).lower(*shapes).as_text()
    assert "while" in text
    for operation in ("stablehlo.sort", "stablehlo.scatter", "top_k", "reduce_window"):
        assert operation not in text


def test_too_many_keys_are_refused():
    shapes = jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    with pytest.raises(ValueError, match="2\\^31"):
        jax.eval_shape(largest, *shapes)
