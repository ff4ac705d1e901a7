"""Every kernel compiles for TPUs at the size of a real step, in the memory that it should take.

A batch of 4096 rows of two models of width 2304, and a quarter or all of 73728 latents with 100
active per row. The TPU compiler runs in full; only the chips are missing.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from jaxdiff.kernels.encode_keys import encode_keys
from jaxdiff.kernels.reaching import reaching
from jaxdiff.kernels.row_adam import Schedule, Table, row_adam, row_squares
from jaxdiff.kernels.weighted_gather import weighted_gather

pytestmark = pytest.mark.tpu

ROWS, WIDTH, LATENTS, ENTRIES = 4096, 4608, 18432, 102400
MIB = 2**20


def compiled(function, *operands, donate=()):
    """Compiles, and checks that the kernel is in the program."""
    program = jax.jit(function, donate_argnums=donate).lower(*operands).compile()
    assert "tpu_custom_call" in program.as_text()
    return program.memory_analysis()


def row_list(array, source, groups, entries=ENTRIES, dtype=jnp.float32):
    return (
        array((source, WIDTH), dtype),
        array((entries,), jnp.int32),
        array((entries,)),
        array((groups + 1,), jnp.int32),
    )


@pytest.mark.parametrize(
    "latents, entries, dtype", [(LATENTS, ENTRIES, jnp.float32), (73728, 409600, jnp.bfloat16)]
)
def test_weighted_gather(on_tpu, latents, entries, dtype):
    memory = compiled(weighted_gather, *row_list(on_tpu, latents, ROWS, entries, dtype))
    assert memory.output_size_in_bytes == ROWS * WIDTH * 4
    # A bfloat16 source is packed beforehand: as much again as it takes itself.
    packed = latents * WIDTH * 2 if dtype == jnp.bfloat16 else 0
    assert memory.temp_size_in_bytes < packed + 8 * MIB


@pytest.mark.parametrize("moment", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("source", [jnp.float32, jnp.bfloat16])
def test_row_adam(on_tpu, moment, source):
    table = Table(on_tpu((LATENTS, WIDTH)), on_tpu((LATENTS, WIDTH), moment), on_tpu((LATENTS, 2)))
    x, indices, weights, offsets = row_list(on_tpu, ROWS, LATENTS, dtype=source)

    def step(table, last, x, indices, weights, offsets, step, rate, scale):
        how = Schedule(step, rate, scale)
        return row_adam((table,), last, (x,), indices, (weights,), offsets, how)

    last, numbers = on_tpu((LATENTS,), jnp.int32), [on_tpu((), jnp.int32), on_tpu(()), on_tpu(())]
    operands = last, x, indices, weights, offsets, *numbers
    memory = compiled(step, table, *operands, donate=0)
    size = LATENTS * WIDTH * (4 + jnp.dtype(moment).itemsize)
    assert size <= memory.alias_size_in_bytes < size + MIB
    # Squares take a row of 128 lanes; a packed source is a copy.
    assert memory.temp_size_in_bytes < LATENTS * 128 * 4 + ROWS * WIDTH * 2 + 8 * MIB


def test_row_squares(on_tpu):
    x, indices, weights, offsets = row_list(on_tpu, ROWS, LATENTS)
    memory = compiled(row_squares, (x, x), indices, (weights, weights), offsets)
    assert memory.temp_size_in_bytes < 8 * MIB


@pytest.mark.parametrize("pivots", [7, 63])
def test_reaching(on_tpu, pivots):
    memory = compiled(reaching, on_tpu((ROWS, LATENTS)), on_tpu((pivots,), jnp.int32))
    assert memory.temp_size_in_bytes < 8 * MIB


def test_encode_keys(on_tpu):
    width = functools.partial(on_tpu, dtype=jnp.bfloat16)
    operands = width((ROWS, WIDTH)), width((WIDTH, LATENTS)), on_tpu((LATENTS,))
    memory = compiled(encode_keys, *operands, on_tpu((LATENTS,)), on_tpu((15,), jnp.int32))
    keys = ROWS * LATENTS * 4
    assert keys <= memory.output_size_in_bytes < keys + MIB
    assert memory.temp_size_in_bytes < 8 * MIB


def test_odd_sizes(on_tpu):
    compiled(
        weighted_gather,
        on_tpu((37, 200)),
        on_tpu((301,), jnp.int32),
        on_tpu((301,)),
        on_tpu((71,), jnp.int32),
    )
    compiled(reaching, on_tpu((37, 1001)), on_tpu((3,), jnp.int32))
    compiled(
        encode_keys,
        on_tpu((37, 100)),
        on_tpu((100, 333)),
        on_tpu((333,)),
        on_tpu((333,)),
        on_tpu((3,), jnp.int32),
    )
