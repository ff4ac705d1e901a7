"""Definition of the fused encoder, and its path on CPUs."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from ..reaching.xla import reaching


def encode_keys(
    x: Float[Array, "B K"],
    W: Float[Array, "K L"],
    b: Float[Array, " L"],
    norms: Float[Array, " L"],
    pivots: Int32[Array, " P"],
) -> tuple[Float[Array, "B L"], Int32[Array, " P"]]:
    """Returns ranking keys and their counts; see `jaxdiff.kernels.encode_keys`."""
    made = keys(x, W, b, norms)
    return made, reaching(lax.stop_gradient(made), pivots)


def keys(
    x: Float[Array, "B K"],
    W: Float[Array, "K L"],
    b: Float[Array, " L"],
    norms: Float[Array, " L"],
) -> Float[Array, "B L"]:
    """Returns `relu(x W + b) * norms` in float32."""
    # Float32 factors are meant: a TPU would otherwise round them to bfloat16.
    pre = jnp.matmul(x, W, precision="highest", preferred_element_type=jnp.float32)
    return jax.nn.relu(pre + b[None, :]) * norms[None, :]
