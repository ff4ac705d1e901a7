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
from ..bitmap import WORD
from ..product import chunks, product

# Keys of a chunk: rows enough for a product that is not bound by its weights.
_KEYS = 1 << 26


def encode_marks(
    x: Float[Array, "B K"],
    W: Float[Array, "L K"],
    b: Float[Array, " L"],
    norms: Float[Array, " L"],
    pivot: Float[Array, ""],
    slack: tuple[Float[Array, " B"], Float[Array, " L"]],
    *,
    dtype: DTypeLike,
    interpret: Any = None,
) -> tuple[UInt32[Array, "W L"], Int32[Array, ""]]:
    """Returns marks and their count; see `jaxdiff.kernels.encode_marks`.

    Where latents are no multiple of 128, the products of each chunk are copied to one that is.
    """
    latents = W.shape[0]
    W, fill = W.astype(dtype), -latents % lists.THREADS
    by_latent = tuple(jnp.pad(a, (0, fill)) for a in (b, norms, slack[1]))

    def mark(part):
        rows, loose = part
        # Latents that fill up have norms and slacks of 0, which reach nothing.
        pre = jnp.pad(product(rows, W), ((0, 0), (0, fill)))
        return _pack(pre, by_latent, loose[:, 0], jnp.stack([pivot]), interpret)

    parts = (chunks(a, latents, _KEYS) for a in (x.astype(dtype), slack[0][:, None]))
    words, counts = lax.map(mark, tuple(parts))
    words = words.reshape(-1, latents + fill)[: pl.cdiv(x.shape[0], WORD), :latents]
    return lax.bitcast_convert_type(words, jnp.uint32), jnp.sum(counts, dtype=jnp.int32)


def _pack(pre, by_latent, loose, pivot, interpret) -> tuple[Int32[Array, "w L"], Int32[Array, ""]]:
    """Packs the keys of a chunk, [multiple of 32, multiple of 128], and counts them."""
    rows, latents = pre.shape
    piece = lists.piece(latents)

    def kernel(pre, b, norms, by_latent, by_row, pivot, words, counts):
        word, at = lax.axis_index("word"), lax.axis_index("piece")
        columns = pl.ds(at * piece, piece)
        bias, factors, loose, level = b[columns], norms[columns], by_latent[columns], pivot[0]

        def row(r, held):
            marks, count = held
            at = word * WORD + r
            keys, slack = (pre[at, columns] + bias) * factors, by_row[at] * loose
            marks |= jnp.where(keys + slack >= level, jnp.left_shift(jnp.int32(1), r), 0)
            return marks, count + jnp.where(keys - slack >= level, 1, 0)

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
    )(pre, *by_latent, loose, pivot)
    return words, jnp.sum(counts, dtype=jnp.int32)
