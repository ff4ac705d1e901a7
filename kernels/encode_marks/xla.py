"""Definition of the marks of the highest keys, and their path on CPUs."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float, Int32, UInt32

from ..bitmap import pack, places

_WORD = 32
# Keys that are held at a time, where a word's rows have fewer.
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
        made = keys(rows, W, b, norms)
        return pack(made >= low), places(pack(made >= high))

    words, counts = lax.map(mark, chunks(x.astype(dtype), W.shape[0]))
    words = words.reshape(-1, W.shape[0])[: -(-x.shape[0] // _WORD)]
    return words, jnp.sum(counts, dtype=jnp.int32)


def chunks(x: Float[Array, "B K"], latents: int) -> Float[Array, "n C K"]:
    """Cuts rows into equal chunks of whole words; what fills the last up has keys of NaN."""
    most = max(_KEYS // latents // _WORD, 1) * _WORD
    count = -(-x.shape[0] // most)
    each = -(-x.shape[0] // (count * _WORD)) * _WORD
    x = jnp.pad(x, ((0, count * each - x.shape[0]), (0, 0)), constant_values=jnp.nan)
    return x.reshape(count, each, -1)


def keys(
    x: Float[Array, "C K"],
    W: Float[Array, "L K"],
    b: Float[Array, " L"],
    norms: Float[Array, " L"],
) -> Float[Array, "C L"]:
    """Returns `(x W^T + b) * norms` in float32."""
    # Float32 factors are meant: TPUs and recent GPUs would otherwise round them.
    precision = "highest" if x.dtype == jnp.float32 else "default"
    pre = lax.dot_general(
        x,
        W,
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return (pre + b[None, :]) * norms[None, :]
