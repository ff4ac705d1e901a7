"""Selectors: which layers, positions, rows, heads and steps an edit applies to.

A selector is traced: numbers (one, or `[K]` of them; negative ones count from the end) or a mask.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdiff.models import At

Selector = Any
"""Numbers or a mask; an array, or what NumPy makes one of."""


def places(selector: Selector, size: int) -> Bool[Array, " n"]:
    """Returns which of `size` places are selected."""
    selector = _numbers(selector)
    if selector.dtype == bool:
        if selector.shape != (size,):
            raise TypeError(f"a mask of {list(selector.shape)} over {size} places")
        return selector
    wanted = jnp.where(selector < 0, selector + size, selector)
    return jnp.any(jnp.arange(size)[:, None] == jnp.ravel(wanted)[None, :], axis=1)


def layer(selector: Selector, at: At) -> Bool[Array, ""]:
    """Returns whether the block is selected."""
    if at.layer is None:
        raise TypeError("this site is outside of the blocks and has no layer")
    return places(selector, at.layers)[at.layer]


def step(selector: Selector, at: At) -> Bool[Array, ""]:
    """Returns whether the step of generation is selected; a mask ends with False."""
    selector = _numbers(selector)
    if selector.dtype == bool:
        last = selector.shape[0] - 1
        return selector[jnp.minimum(at.step, last)] & (at.step <= last)
    return jnp.any(jnp.ravel(selector) == at.step)


def tokens(selector: Selector, at: At) -> Bool[Array, "#B T"]:
    """Returns which tokens are selected by their position in their text; never padding.

    Negative positions count from the end of the row's last text, and select nothing outside of it.
    """
    selector, positions = _numbers(selector), at.positions
    if selector.dtype == bool:
        hits = _masked(jnp.atleast_2d(selector), positions)
    else:
        wanted = jnp.ravel(selector)[None, None] if selector.ndim < 2 else selector[:, None]
        # A text packed before the row's last one has the same positions: tokens decide as well.
        place = positions[:, :, None] - at.last[:, None, None] - 1
        same = (place == wanted) & (-_behind(at)[:, :, None] - 1 == wanted)
        hits = jnp.where(wanted < 0, same, positions[:, :, None] == wanted).any(axis=-1)
    return hits if at.real is None else hits & at.real


def on_axes(mask: Array, axes: tuple[int, ...], ndim: int) -> Array:
    """Returns a mask whose dimensions are those of a value."""
    shape = [1] * ndim
    for axis, size in zip(axes, mask.shape, strict=True):
        shape[axis] = size
    return mask.reshape(shape)


def _numbers(selector: Selector) -> Array:
    """Returns a mask as it is and numbers as positions are stored, whatever they come in."""
    selector = jnp.asarray(selector)
    return selector if selector.dtype == bool else selector.astype(jnp.int32)


def _masked(mask: Array, positions: Array) -> Array:
    rows, last = max(mask.shape[0], positions.shape[0]), mask.shape[1] - 1
    mask = jnp.broadcast_to(mask, (rows, mask.shape[1]))
    positions = jnp.broadcast_to(positions, (rows, positions.shape[1]))
    found = jnp.take_along_axis(mask, jnp.clip(positions, 0, last), axis=1)
    return found & (positions >= 0) & (positions <= last)


def _behind(at: At) -> Array:
    """Returns how many tokens, padding not counted, come after each one in its row."""
    if at.real is None:
        count = at.positions.shape[1]
        return (count - 1 - jnp.arange(count))[None, :]
    real = at.real.astype(jnp.int32)
    return jnp.sum(real, axis=1, keepdims=True) - jnp.cumsum(real, axis=1)
