"""The marks of the highest keys on GPUs: the library's product chunk by chunk, each packed at once.

The library's matrix product is faster than one written here. A block of threads packs the words of
one piece of the latents: 32 rows at a time, which are in the second-level cache or were written
just before.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, DTypeLike, Float, Int32, UInt32

from .. import listed_rows_gpu as lists
from .xla import WORD, chunks, product

# Keys of a chunk: rows enough for a product that is not bound by its weights.
_KEYS = 1 << 26


def encode_marks(
    x: Float[Array, "B K"],
    W: Float[Array, "L K"],
    b: Float[Array, " L"],
    norms: Float[Array, " L"],
    low: Float[Array, ""],
    high: Float[Array, ""],
    *,
    dtype: DTypeLike,
    interpret: Any = None,
) -> tuple[UInt32[Array, "W L"], Int32[Array, ""]]:
    """Returns marks and their count; see `jaxdiff.kernels.encode_marks`.

    Where latents are no multiple of 128, the products of each chunk are copied to one that is.
    """
    latents = W.shape[0]
    W, bounds = W.astype(dtype), jnp.stack([low, high])
    fill = -latents % lists.THREADS
    b, norms = (jnp.pad(a, (0, fill)) for a in (b, norms))

    def mark(rows):
        # Latents that fill up have norms of 0, which reach nothing.
        pre = jnp.pad(product(rows, W), ((0, 0), (0, fill)))
        return _pack(pre, b, norms, bounds, interpret)

    words, counts = lax.map(mark, chunks(x.astype(dtype), latents, _KEYS))
    words = words.reshape(-1, latents + fill)[: pl.cdiv(x.shape[0], WORD), :latents]
    return lax.bitcast_convert_type(words, jnp.uint32), jnp.sum(counts, dtype=jnp.int32)


def _pack(pre, b, norms, bounds, interpret) -> tuple[Int32[Array, "w L"], Int32[Array, ""]]:
    """Packs the keys of a chunk, [multiple of 32, multiple of 128], and counts them."""
    rows, latents = pre.shape
    piece = lists.piece(latents)

    def kernel(pre, b, norms, bounds, words, counts):
        word, at = lax.axis_index("word"), lax.axis_index("piece")
        columns = pl.ds(at * piece, piece)
        bias, factors, low, high = b[columns], norms[columns], bounds[0], bounds[1]

        def row(r, held):
            marks, count = held
            keys = (pre[word * WORD + r, columns] + bias) * factors
            bit = jnp.left_shift(jnp.int32(1), r)
            return marks | jnp.where(keys >= low, bit, 0), count + jnp.where(keys >= high, 1, 0)

        zeros = jnp.zeros((piece,), jnp.int32)
        marks, count = lax.fori_loop(0, WORD, row, (zeros, zeros))
        words[word, columns] = marks
        counts[word, columns] = count

    words, counts = plgpu.kernel(
        kernel,
        out_type=(jax.ShapeDtypeStruct((rows // WORD, latents), jnp.int32),) * 2,
        grid=(latents // piece, rows // WORD),
        grid_names=("piece", "word"),
        compiler_params=lists.PARAMS,
        interpret=interpret,
        kernel_name="encode_marks",
    )(pre, b, norms, bounds)
    return words, jnp.sum(counts, dtype=jnp.int32)
