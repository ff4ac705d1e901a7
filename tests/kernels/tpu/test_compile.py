"""Every kernel compiles for TPUs at the size of a real step, in the memory that it should take.

A batch of 4096 rows of two models of width 2304, and a quarter or all of 73728 latents with 100
active per row. The TPU compiler runs in full; only the chips are missing.
"""

import jax
import jax.numpy as jnp
import pytest
from jaxdiff.kernels.encode_marks import encode_marks
from jaxdiff.kernels.gathered_dots import gathered_dots
from jaxdiff.kernels.row_adam import Schedule, Table, row_adam, row_squares
from jaxdiff.kernels.weighted_gather import weighted_gather

pytestmark = pytest.mark.tpu

ROWS, WIDTH, LATENTS, ENTRIES = 4096, 4608, 18432, 102400
MIB = 2**20


def compiled(function, *operands, donate=(), moved=0):
    """Compiles, and checks that the kernel is in the program, and that its traffic is counted."""
    program = jax.jit(function, donate_argnums=donate).lower(*operands).compile()
    assert "tpu_custom_call" in program.as_text()
    assert program.cost_analysis()["bytes accessed"] >= moved
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
    moved = entries * WIDTH * jnp.dtype(dtype).itemsize
    given = row_list(on_tpu, latents, ROWS, entries, dtype)
    memory = compiled(weighted_gather, *given, moved=moved)
    assert memory.output_size_in_bytes == ROWS * WIDTH * 4
    # A bfloat16 source is packed beforehand: as much again as it takes itself.
    packed = latents * WIDTH * 2 if dtype == jnp.bfloat16 else 0
    assert memory.temp_size_in_bytes < packed + 8 * MIB


@pytest.mark.parametrize("moment", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("source", [jnp.float32, jnp.bfloat16])
def test_row_adam(on_tpu, moment, source):
    table = Table(on_tpu((LATENTS, WIDTH)), on_tpu((LATENTS, WIDTH), moment), on_tpu((LATENTS, 2)))
    x, indices, weights, offsets = row_list(on_tpu, ROWS, LATENTS, dtype=source)

    def step(table, last, x, indices, weights, offsets, step, rate, scale, pull):
        how = Schedule(step, rate, scale, step)
        return row_adam((table,), last, (x,), indices, (weights,), offsets, how, (pull,))

    last, numbers = on_tpu((LATENTS,), jnp.int32), [on_tpu((), jnp.int32), on_tpu(()), on_tpu(())]
    operands = last, x, indices, weights, offsets, *numbers, on_tpu((LATENTS, 2))
    size = LATENTS * WIDTH * (4 + jnp.dtype(moment).itemsize)
    moved = 2 * size + ENTRIES * WIDTH * jnp.dtype(source).itemsize
    memory = compiled(step, table, *operands, donate=0, moved=moved)
    assert size <= memory.alias_size_in_bytes < size + MIB
    # Squares take a row of 128 lanes; a packed source is a copy.
    assert memory.temp_size_in_bytes < LATENTS * 128 * 4 + ROWS * WIDTH * 2 + 8 * MIB


def test_row_squares(on_tpu):
    x, indices, weights, offsets = row_list(on_tpu, ROWS, LATENTS)
    operands = (x, x), indices, (weights, weights), offsets
    memory = compiled(row_squares, *operands, moved=2 * ENTRIES * WIDTH * 4)
    assert memory.temp_size_in_bytes < 8 * MIB


@pytest.mark.parametrize("source", [jnp.float32, jnp.bfloat16])
def test_gathered_dots(on_tpu, source):
    indices = on_tpu((ENTRIES,), jnp.int32)
    operands = on_tpu((LATENTS, WIDTH)), indices, on_tpu((ROWS, WIDTH), source), indices
    # Entries that follow the left side fetch each of its rows once.
    moved = LATENTS * WIDTH * 4 + ENTRIES * WIDTH * jnp.dtype(source).itemsize
    memory = compiled(gathered_dots, *operands, on_tpu((), jnp.int32), moved=moved)
    packed = ROWS * WIDTH * 2 if source == jnp.bfloat16 else 0
    assert memory.temp_size_in_bytes < packed + 8 * MIB


def encoder(array, rows, width, latents):
    slack = array((rows,)), array((latents,))
    vectors = array((latents,)), array((latents,)), array(()), slack
    return array((rows, width)), array((latents, width)), *vectors


def test_encode_marks(on_tpu):
    def mark(*operands):
        return encode_marks(*operands, dtype=jnp.bfloat16)

    memory = compiled(mark, *encoder(on_tpu, ROWS, WIDTH, LATENTS), moved=LATENTS * WIDTH * 4)
    marks = ROWS // 32 * LATENTS * 4
    assert marks <= memory.output_size_in_bytes < marks + MIB
    # Rounded rows, at most; no keys, which would take 288 MiB, and no rounded weights: 162 MiB.
    assert memory.temp_size_in_bytes < ROWS * WIDTH * 2 + 16 * MIB


def test_odd_sizes(on_tpu):
    indices = on_tpu((301,), jnp.int32)
    list_of_rows = on_tpu((37, 200)), indices, on_tpu((301,)), on_tpu((71,), jnp.int32)
    compiled(weighted_gather, *list_of_rows)
    sides = on_tpu((37, 200)), indices, on_tpu((9, 200)), indices
    compiled(gathered_dots, *sides, on_tpu((), jnp.int32))
    # Not a whole word, lane or tile of the inner size; the product of float32.
    compiled(encode_marks, *encoder(on_tpu, 300, 900, 1030))
