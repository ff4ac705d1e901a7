"""Definition of the marks of the highest keys, and their path on CPUs."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float, Int32, UInt32

from ..bitmap import WORD, pack, places
from ..product import chunks, product


def encode_marks(
    x: Float[Array, "B K"],
    W: Float[Array, "L K"],
    b: Float[Array, " L"],
    norms: Float[Array, " L"],
    pivot: Float[Array, ""],
    slack: tuple[Float[Array, " B"], Float[Array, " L"]],
    *,
    dtype: DTypeLike,
) -> tuple[UInt32[Array, "W L"], Int32[Array, ""]]:
    """Marks and counts chunk by chunk of rows; see `jaxdiff.kernels.encode_marks`."""
    W, latents = W.astype(dtype), W.shape[0]

    def mark(part):
        rows, loose = part
        keys = (product(rows, W) + b[None, :]) * norms[None, :]
        loose = loose * slack[1][None, :]
        return pack(keys + loose >= pivot), places(pack(keys - loose >= pivot))

    parts = chunks(x.astype(dtype), latents), chunks(slack[0][:, None], latents)
    words, counts = lax.map(mark, parts)
    words = words.reshape(-1, latents)[: -(-x.shape[0] // WORD)]
    return words, jnp.sum(counts, dtype=jnp.int32)
