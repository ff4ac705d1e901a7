"""Ops around another op: with leaves for each layer, or on the way back."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdiff.models import At

_op = jax.tree_util.register_dataclass


@_op
@dataclass(frozen=True)
class PerLayer:
    """Gives each layer its own leaves: those of `op` have a leading axis N, or are scalars."""

    op: Any

    def __call__(self, value: Array, at: At) -> Array:
        """Applies the layer's own op."""
        if at.layer is None:
            raise TypeError("this site is outside of the blocks and has no layer")
        return jax.tree.map(lambda leaf: _own(leaf, at), self.op)(value, at)


@_op
@dataclass(frozen=True)
class Backward:
    """Leaves the value as it is, and applies `op` to its gradient in the backward pass.

    `Backward(Set(0.0))` lets no gradient through. There is no forward-mode derivative.
    """

    op: Any

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the value."""
        leaves, structure = jax.tree.flatten((self.op, at))
        return _backward(value, leaves, structure)


def _own(leaf: Any, at: At) -> Any:
    if not jnp.ndim(leaf):
        return leaf
    if len(leaf) != at.layers:
        raise TypeError(f"PerLayer has leaves for {len(leaf)} layers, the model has {at.layers}")
    return jnp.asarray(leaf)[at.layer]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _backward(value: Array, leaves: list[Any], structure: Any) -> Array:
    del leaves, structure
    return value


def _forward_rule(value: Array, leaves: list[Any], structure: Any) -> tuple[Array, list[Any]]:
    del structure
    return value, leaves


def _backward_rule(structure: Any, leaves: list[Any], gradient: Array) -> tuple[Array, None]:
    op, at = structure.unflatten(leaves)
    return op(gradient, at), None


_backward.defvjp(_forward_rule, _backward_rule)
