"""The encoder's product fused with the ranking keys and with the first counts of selection."""

import functools

import jax
from jaxtyping import Array, Float, Int32

from ..dispatch import Implementation, dispatch
from . import xla

__all__ = ["encode_keys"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def encode_keys(
    x: Float[Array, "B K"],
    W: Float[Array, "K L"],
    b: Float[Array, " L"],
    norms: Float[Array, " L"],
    pivots: Int32[Array, " P"],
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B L"], Int32[Array, " P"]]:
    """Returns ranking keys and how many of them reach each pivot.

    keys = relu(x W + b) * norms. The product is summed in float32, whatever the dtype of its
    factors, and float32 factors are not rounded. The keys have a gradient, the counts have none.

    Args:
        x: Rows; float32 or bfloat16.
        W: Encoder weights; of the same dtype.
        b: Encoder bias, float32.
        norms: Code norms, float32, 0 or more.
        pivots: Bit patterns of keys, 0 or more, as in `reaching`.
        implementation: `xla`, `pallas_tpu`, `pallas_gpu`, or None for the platform's.

    Returns:
        The keys, float32, and a count for each pivot.

    Raises:
        ValueError: If there is no implementation of that name.
    """
    from . import gpu, tpu

    known = {"xla": xla.encode_keys, "pallas_tpu": tpu.encode_keys, "pallas_gpu": gpu.encode_keys}
    return dispatch(known, implementation, x, W, b, norms, pivots)


def _forward(x, W, b, norms, pivots, implementation):
    return encode_keys(x, W, b, norms, pivots, implementation), (x, W, b, norms)


def _backward(_, operands, gradients):
    """The product is taken again rather than kept: keys are 0 where norms are."""
    _, pull = jax.vjp(xla.keys, *operands)
    return *pull(gradients[0]), None


encode_keys.defvjp(_forward, _backward)
