"""The encoder's product, of which a bit map of the highest keys is all that is ever held."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int32, UInt32

from ..dispatch import Implementation, dispatch
from . import xla

__all__ = ["encode_marks"]


def encode_marks(
    x: Float[Array, "B K"],
    W: Float[Array, "L K"],
    b: Float[Array, " L"],
    norms: Float[Array, " L"],
    pivot: Float[Array, ""],
    slack: tuple[Float[Array, " B"], Float[Array, " L"]],
    *,
    dtype: DTypeLike = jnp.float32,
    implementation: Implementation | None = None,
) -> tuple[UInt32[Array, "W L"], Int32[Array, ""]]:
    """Marks the places where a key may reach a pivot, and counts the keys that surely do.

    keys = (x W^T + b) * norms, summed in float32. Another sum may give another number: how far from
    this one is bounded by the slack of its row times that of its latent. No array of B x L keys is
    made.

    Args:
        x: Rows, float32.
        W: Encoder weights, float32.
        b: Encoder bias.
        norms: Code norms, 0 or more.
        pivot: Positive; NaN does not reach it.
        slack: Of rows and of latents, 0 or more: marked is where key + slack reaches the pivot,
            counted where key - slack does.
        dtype: What the factors of the product are rounded to: bfloat16, or float32, which is not
            rounded on any platform.
        implementation: `xla`, `pallas_tpu`, `pallas_gpu`, or None for the platform's.

    Returns:
        The marks as `bitmap.pack` lays them out, and the count.

    Raises:
        ValueError: If there are 2^31 keys or more, which counts could not hold, or if there is no
            implementation of that name.
    """
    if x.shape[0] * W.shape[0] >= 2**31:
        sizes = f"{x.shape[0]} rows x {W.shape[0]} latents"
        raise ValueError(f"counts hold fewer than 2^31 keys, not {sizes}; split the rows")
    from . import gpu, tpu

    known = {
        "xla": xla.encode_marks,
        "pallas_tpu": tpu.encode_marks,
        "pallas_gpu": gpu.encode_marks,
    }
    known = {name: functools.partial(op, dtype=dtype) for name, op in known.items()}
    return dispatch(known, implementation, x, W, b, norms, pivot, slack)
