"""Scalar products of listed pairs of rows: the gradient of sparse codes."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int32

from ..dispatch import Implementation, dispatch
from . import xla

__all__ = ["gathered_dots"]


def gathered_dots(
    left: Float[Array, "R D"],
    rows: Int32[Array, " N"],
    right: Float[Array, "S D"],
    others: Int32[Array, " N"],
    count: Int32[Array, ""],
    *,
    dtype: DTypeLike = jnp.float32,
    implementation: Implementation | None = None,
) -> Float[Array, " N"]:
    """Returns `left[rows[i]] . right[others[i]]` for i < count, and 0 from there on.

    Args:
        left: Rows of one side.
        rows: Row of each entry, in range also from `count` on. Any order will do; neighbours that
            share a row are cheaper on some platforms.
        right: Rows of the other side.
        others: Row of each entry there.
        count: Entries that there are.
        dtype: What the factors are rounded to, float32 or bfloat16; sums are in float32.
        implementation: `xla`, `pallas_tpu`, `pallas_gpu`, or None for the platform's.

    Returns:
        A product for each entry, float32.

    Raises:
        ValueError: If there is no implementation of that name.
    """
    from . import gpu, tpu

    known = {
        "xla": xla.gathered_dots,
        "pallas_tpu": tpu.gathered_dots,
        "pallas_gpu": gpu.gathered_dots,
    }
    known = {name: functools.partial(op, dtype=dtype) for name, op in known.items()}
    return dispatch(known, implementation, left, rows, right, others, count)
