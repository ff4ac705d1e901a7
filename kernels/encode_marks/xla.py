"""Definition of the marks of the highest keys, and their path on CPUs."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float, Int32, UInt32

from ..bitmap import pack, places

# Rows of a word of the bit map.
WORD = 32
# Keys that are held at a time.
_KEYS = 1 << 24


def encode_marks(
    x: Float[Array, "B K"],
    W: Float[Array, "L K"],
    b: Float[Array, " L"],
    norms: Float[Array, " L"],
    low: Float[Array, ""],
    high: Float[Array, ""],
    *,
    dtype: DTypeLike,
) -> tuple[UInt32[Array, "W L"], Int32[Array, ""]]:
    """Marks and counts chunk by chunk of rows; see `jaxdiff.kernels.encode_marks`."""
    W = W.astype(dtype)

    def mark(rows):
        keys = (product(rows, W) + b[None, :]) * norms[None, :]
        return pack(keys >= low), places(pack(keys >= high))

    words, counts = lax.map(mark, chunks(x.astype(dtype), W.shape[0]))
    words = words.reshape(-1, W.shape[0])[: -(-x.shape[0] // WORD)]
    return words, jnp.sum(counts, dtype=jnp.int32)


def chunks(x: Float[Array, "B K"], latents: int, keys: int | None = None) -> Float[Array, "n C K"]:
    """Cuts rows into equal chunks of whole words.

    Args:
        x: Rows.
        latents: Number of latents.
        keys: Keys that a chunk has at most, if it is not a single word; by default 2^24.

    Returns:
        Chunks; what fills the last one up has keys of NaN, which reach nothing.
    """
    most = max((keys or _KEYS) // latents // WORD, 1) * WORD
    count = -(-x.shape[0] // most)
    each = -(-x.shape[0] // (count * WORD)) * WORD
    x = jnp.pad(x, ((0, count * each - x.shape[0]), (0, 0)), constant_values=jnp.nan)
    return x.reshape(count, each, -1)


def product(x: Float[Array, "C K"], W: Float[Array, "L K"]) -> Float[Array, "C L"]:
    """Returns `x W^T`, summed in float32."""
    # Float32 factors are meant: TPUs and recent GPUs would otherwise round them.
    return lax.dot_general(
        x,
        W,
        (((1,), (1,)), ((), ())),
        precision="highest" if x.dtype == jnp.float32 else "default",
        preferred_element_type=jnp.float32,
    )
