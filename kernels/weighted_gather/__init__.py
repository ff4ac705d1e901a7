"""Weighted sums of rows, group by group: the decoder of sparse codes, and their gradients."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from ..dispatch import Implementation, dispatch
from ..gathered_dots import gathered_dots
from . import xla

__all__ = ["weighted_gather"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def weighted_gather(
    source: Float[Array, "S D"],
    indices: Int32[Array, " n"],
    weights: Float[Array, " n"],
    offsets: Int32[Array, " _"],
    implementation: Implementation | None = None,
) -> Float[Array, "G D"]:
    """Returns the weighted sum of each group's rows, in float32.

    out[g] = sum of weights[i] * source[indices[i]] over offsets[g] <= i < offsets[g + 1], added up
    in the order of the list on TPUs and GPUs, in a fixed tree on CPUs: the same bits in every run.

    Args:
        source: Rows.
        indices: Row of each entry, in range also where no group holds the entry.
        weights: Weight of each entry.
        offsets: Where each of G groups starts, and where the last one ends, [G + 1].
        implementation: `xla`, `pallas_tpu`, `pallas_gpu`, or None for the platform's.

    Returns:
        A row for each group; 0 for a group without entries.

    Raises:
        ValueError: If there is no implementation of that name.
    """
    return _weighted_gather(implementation, source, indices, weights, offsets)


def _weighted_gather(implementation: Implementation | None, *operands):
    from . import gpu, tpu

    known = {
        "xla": xla.weighted_gather,
        "pallas_tpu": tpu.weighted_gather,
        "pallas_gpu": gpu.weighted_gather,
    }
    return dispatch(known, implementation, *operands)


def _forward(source, indices, weights, offsets, implementation):
    out = weighted_gather(source, indices, weights, offsets, implementation)
    return out, (source, indices, weights, offsets)


def _backward(implementation, operands, gradient):
    """The transpose is the same op on the list in the order of its rows."""
    source, indices, weights, offsets = operands
    entry = jnp.arange(indices.size, dtype=jnp.int32)
    inside = (entry >= offsets[0]) & (entry < offsets[-1])
    groups = jnp.searchsorted(offsets[1:], entry, side="right").astype(jnp.int32)
    groups = jnp.minimum(groups, offsets.size - 2)
    rows = source.shape[0]
    order = jnp.argsort(jnp.where(inside, indices, rows), stable=True)
    ends = jnp.searchsorted(jnp.where(inside, indices, rows)[order], jnp.arange(rows + 1))
    by_row = groups[order], weights[order], ends.astype(jnp.int32)
    pulled = _weighted_gather(implementation, gradient, *by_row)
    pairs = gradient, groups, source, indices, jnp.int32(indices.size)
    dots = gathered_dots(*pairs, implementation=implementation)
    dots = jnp.where(inside, dots, 0.0)
    return pulled.astype(source.dtype), None, dots.astype(weights.dtype), None


weighted_gather.defvjp(_forward, _backward)
