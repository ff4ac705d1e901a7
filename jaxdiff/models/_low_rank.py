"""Low-rank updates of stacked matrices: added to them, or laid out beside them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Bool, Float

from jaxdiff.models._mapping import Index
from jaxdiff.types import HostOrDevice


class LowRank(NamedTuple):
    """`b @ a` is added to a matrix; stacked over layers and experts as the matrix is."""

    a: Float[HostOrDevice, "*N R i"]
    b: Float[HostOrDevice, "*N o R"]


def join(updates: Mapping[Index, LowRank], shape: tuple[int, ...], rank: int = 0) -> LowRank:
    """Stacks the updates of the matrices that one parameter holds.

    Args:
        updates: Updates by layer and expert; those that are absent are zero.
        shape: Shape of the parameter.
        rank: Rank to fill all updates up to, with zeros; their largest when 0.
    """
    rank = rank or max(len(update.a) for update in updates.values())
    *leading, outputs, inputs = shape
    a = np.zeros((*leading, rank, inputs), np.float32)
    b = np.zeros((*leading, outputs, rank), np.float32)
    for index, update in updates.items():
        a[index][: len(update.a)] = update.a
        b[index][:, : len(update.a)] = update.b
    return LowRank(a, b)


def change(
    params: Mapping[str, Array],
    replaced: Mapping[str, Mapping[Index, np.ndarray]],
    updates: Mapping[str, LowRank],
) -> tuple[dict[str, Array], dict[str, Bool[Array, ""]]]:
    """Replaces and updates parameters, in one program.

    Args:
        params: Parameters by path; each stays where it is, in its dtype.
        replaced: New values of whole matrices and vectors, by path, layer and expert.
        updates: What is added then, in float32, by path.

    Returns:
        The new parameters, and whether each differs from the old one.
    """
    stacks = {
        path: (tuple(np.array(list(values)).T), np.stack(list(values.values())))
        for path, values in replaced.items()
    }
    layout = {path: leaf.sharding for path, leaf in params.items()}
    return jax.jit(_change, out_shardings=(layout, None))(dict(params), stacks, dict(updates))


def _change(params: Any, stacks: Any, updates: Any) -> Any:
    new = {}
    for path, leaf in params.items():
        value = leaf
        if path in stacks:
            index, stack = stacks[path]
            stack = jnp.asarray(stack).astype(leaf.dtype)
            value = leaf.at[index].set(stack) if index else stack[0]
        new[path] = _add(value, *updates[path]) if path in updates else value
    return new, {path: jnp.any(new[path] != leaf) for path, leaf in params.items()}


def _add(weight: Array, a: Array, b: Array) -> Array:
    if weight.ndim > 2:
        # One matrix after the other: a float32 copy of a whole stack may not fit.
        return jax.lax.map(lambda leaves: _add(*leaves), (weight, a, b))
    product = jnp.matmul(
        b.astype(jnp.float32), a.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    return (weight.astype(jnp.float32) + product).astype(weight.dtype)


def beside(weight: Array, update: LowRank) -> LowRank:
    """Returns an update in a weight's dtype, its inputs and outputs split as the weight's are."""
    return LowRank(
        *(
            _put(np.asarray(factor).astype(weight.dtype), _layout(weight, kept))
            for factor, kept in ((update.a, -1), (update.b, -2))
        )
    )


def _layout(weight: Array, kept: int) -> Sharding:
    """Returns the weight's sharding for an array that has one of its last two axes."""
    if not isinstance(weight.sharding, NamedSharding):
        return weight.sharding
    axes = list(weight.sharding.spec) + [None] * (weight.ndim - len(weight.sharding.spec))
    axes[-1 if kept == -2 else -2] = None
    return NamedSharding(weight.sharding.mesh, PartitionSpec(*axes))


def _put(value: np.ndarray, sharding: Sharding) -> Array:
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
