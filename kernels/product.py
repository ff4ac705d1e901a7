"""How products are taken: in which dtype, summed in float32, and in chunks of rows."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .bitmap import WORD

# Keys that are held at a time.
KEYS = 1 << 24


def accumulation(dtype: Any) -> dict[str, Any]:
    """Returns how products of a dtype are summed: in float32, of factors that are not rounded."""
    # By default TPUs and recent GPUs round float32 factors to fewer bits.
    precision = "highest" if jnp.dtype(dtype) == jnp.float32 else "default"
    return {"preferred_element_type": jnp.float32, "precision": precision}


def matmul(a: Float[Array, "R K"], b: Float[Array, "K C"], dtype: Any) -> Float[Array, "R C"]:
    """Returns `a b` of factors rounded to a dtype, summed in float32."""
    return jnp.matmul(a.astype(dtype), b.astype(dtype), **accumulation(dtype))


def product(x: Float[Array, "C K"], W: Float[Array, "L K"]) -> Float[Array, "C L"]:
    """Returns `x W^T`, summed in float32."""
    return lax.dot_general(x, W, (((1,), (1,)), ((), ())), **accumulation(x.dtype))


def chunks(x: Float[Array, "B K"], latents: int, most: int = KEYS) -> Float[Array, "n C K"]:
    """Cuts rows into equal chunks of whole words; what fills the last up is NaN.

    Args:
        x: Rows.
        latents: Keys of a row.
        most: Keys of a chunk, at most, where a word's rows have fewer.
    """
    most = max(most // latents // WORD, 1) * WORD
    count = -(-x.shape[0] // most)
    each = -(-x.shape[0] // (count * WORD)) * WORD
    x = jnp.pad(x, ((0, count * each - x.shape[0]), (0, 0)), constant_values=jnp.nan)
    return x.reshape(count, each, -1)
