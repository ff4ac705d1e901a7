"""From latents back to activations."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.kernels.product import accumulation, matmul


def decode(
    d: Dictionary,
    f: Float[Array, "R L"] | Float[Array, "R N L"],
    x: Float[Array, "R M D"] | None = None,
    *,
    bias: bool = True,
    dtype: Any = jnp.float32,
) -> Float[Array, "R N D"]:
    """Returns sum_j f_j d_j^n + b_dec^n + (x W_skip)^n; products in `dtype`, sums in float32.

    Args:
        d: The dictionary.
        f: Values of the latents.
        x: What the dictionary read; needed where it has W_skip.
        bias: Whether to add what does not come from latents, b_dec and the skip.
        dtype: Dtype of the matrix products.

    Raises:
        ValueError: If `d` has W_skip and `x` is not given.
    """
    out = decode_rows(d.W_dec, f, dtype=dtype)
    return out + offset(d, x, dtype=dtype) if bias else out


def decode_rows(
    W_dec: Float[Array, "L N D"],
    f: Float[Array, "R L"] | Float[Array, "R N L"],
    *,
    dtype: Any = jnp.float32,
) -> Float[Array, "R N D"]:
    """Returns sum_j f_j d_j^n; products in `dtype`, sums in float32."""
    latents, models, width = W_dec.shape
    if f.ndim == 3:
        rows = (f.astype(dtype), W_dec.astype(dtype))
        return jnp.einsum("rml,lmd->rmd", *rows, **accumulation(dtype))
    return matmul(f, W_dec.reshape(latents, -1), dtype).reshape(-1, models, width)


def offset(
    d: Dictionary, x: Float[Array, "R M D"] | None, *, dtype: Any = jnp.float32
) -> Float[Array, "#R N D"]:
    """Returns the part of a reconstruction that does not come from latents.

    Raises:
        ValueError: If `d` has W_skip and `x` is not given.
    """
    if d.W_skip is None:
        return d.b_dec[None]
    if x is None:
        raise ValueError("a dictionary with W_skip needs what it read: decode(d, f, x)")
    flat = d.W_skip.reshape(x.shape[1] * x.shape[2], -1)
    product = matmul(x.reshape(len(x), -1), flat, dtype)
    return product.reshape(-1, *d.b_dec.shape) + d.b_dec[None]
