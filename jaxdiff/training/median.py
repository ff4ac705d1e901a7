"""Geometric median, the start value of the decoder bias."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def geometric_median(
    x: Float[Array, "B M D"], *, iterations: int = 100, tolerance: float = 1e-5
) -> Float[Array, "M D"]:
    """Returns, for each model, the point with the least sum of distances to the rows (Weiszfeld).

    Args:
        x: Activations.
        iterations: Most iterations [iterations].
        tolerance: Stops when no model's point moves by more than this part of its norm [ratio].

    Returns:
        One point for each model.
    """
    smallest = jnp.finfo(jnp.float32).tiny ** 0.5

    def moving(state):
        i, _, moved = state
        return (i < iterations) & (moved > tolerance)

    def move(state):
        i, point, _ = state
        distance = jnp.linalg.norm(x - point[None], axis=-1)
        weight = 1 / jnp.maximum(distance, smallest)
        weight = weight / jnp.sum(weight, axis=0, keepdims=True)
        new = jnp.sum(weight[:, :, None] * x, axis=0)
        step = jnp.linalg.norm(new - point, axis=-1)
        size = jnp.maximum(jnp.linalg.norm(new, axis=-1), smallest)
        return i + 1, new, jnp.max(step / size)

    start = (jnp.int32(0), jnp.mean(x, axis=0), jnp.float32(jnp.inf))
    return lax.while_loop(moving, move, start)[1]
