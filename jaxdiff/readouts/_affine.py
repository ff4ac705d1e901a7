"""Affine maps of hidden states: from one model to another, or from each layer to the last one."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import At


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Affine:
    """`weight @ x + bias`: from the hidden states of one model, or layer, to those of another.

    Attributes:
        weight: `[E, D]`; for a lens one of each layer, `[N, E, D]`.
        bias: `[E]` or `[N, E]`, or a number.
    """

    weight: Any
    bias: Any = 0.0

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B E"]:
        """Maps the last axis, in float32; not for one that has layers."""
        weight = jnp.asarray(self.weight).astype(jnp.float32)
        bias = jnp.broadcast_to(jnp.asarray(self.bias).astype(jnp.float32), weight.shape[:1])
        y = jnp.einsum("...d,ed->...e", x.astype(jnp.float32), weight)
        return y + bias[(None,) * (y.ndim - 1)]


def of_layer(through: Any, value: Array, at: At, width: int) -> Array:
    """Returns a layer's value `[..., D]` as the layer's own map leaves it, `[..., width]`.

    Raises:
        JaxdiffError: If the maps do not fit, or the value is of no layer.
    """
    check_through(through, (at.layers, width, value.shape[-1]), inside=at.layer is not None)
    own = jax.tree.map(lambda x: jnp.asarray(x)[at.layer] if jnp.ndim(x) else x, through)
    return own(value).astype(value.dtype)


def check_through(
    through: Any, shape: tuple[int, int, int], *, inside: bool, where: str = "Lens: through"
) -> None:
    """Refuses what is no affine map of each layer.

    Args:
        through: What was given.
        shape: Shape of the weight that fits, `[N, E, D]`.
        inside: Whether it is for a site in the blocks.
        where: Where it was given.

    Raises:
        JaxdiffError: If it does not fit.
    """
    if not isinstance(through, Affine):
        raise JaxdiffError(
            "`through` is an Affine that has a map of each layer",
            where=where,
            fix="Affine(weight, bias)",
        )
    if not inside:
        raise JaxdiffError(
            "this site is outside of the blocks and has no layer, whose map could be used",
            where=where,
            fix="read a site like blocks.*.resid_post, or leave `through` out",
        )
    weight, bias = jnp.shape(through.weight), jnp.shape(through.bias)
    if weight != shape or bias not in ((), shape[:2]):
        raise JaxdiffError(
            f"the maps have a weight {list(weight)} and a bias {list(bias)}, those of these layers "
            f"are {list(shape)} and {list(shape[:2])}",
            where=where,
            fix="give one map of each layer of the model, from train_lens or jacobian_lens of it",
        )
