"""How what a tap reads at the prompt and at each step is put together."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdiff.models._sites import layer_and_part, sites
from jaxdiff.models._tap import At, Tap
from jaxdiff.models.spec import ModelConfig

Axes = dict[str, Any]
"""By the names of taps: of each array that the tap makes, the axis of tokens; -1 without one."""


def token_axes(spec: ModelConfig, taps: tuple[Tap, ...], rows: int) -> Axes:
    """Returns which axis of what each tap makes grows with the number of tokens."""
    return {tap.name: _axes(spec, tap, rows) for tap in taps}


def _axes(spec: ModelConfig, tap: Tap, rows: int) -> Any:
    site = sites(spec)[tap.site.replace("*", "0")]
    every = layer_and_part(tap.site)[0] == "*"

    def shapes(tokens: int) -> Any:
        sizes = {"B": rows, "T": tokens, "S": 5}

        def read(tap: Tap) -> Any:
            at = At(
                positions=jnp.zeros((rows, tokens), jnp.int32),
                last=jnp.zeros(rows, jnp.int32),
                real=jnp.ones((rows, tokens), bool),
                layer=0,
                axes=site,
            )
            return tap(jnp.zeros([sizes.get(str(axis), axis) for axis in site]), at)

        return jax.eval_shape(read, tap)

    def axis(two: Any, three: Any) -> int:
        pairs = enumerate(zip(two.shape, three.shape, strict=True))
        differ = [i for i, (a, b) in pairs if a != b]
        return differ[0] + every if differ else -1

    return jax.tree.map(axis, shapes(2), shapes(3))


def laid_out(axes: Axes, found: dict[str, Any]) -> dict[str, Any]:
    """Gives what has no axis of tokens a leading axis of steps."""
    return {
        name: jax.tree.map(lambda a, leaf: leaf[None] if a < 0 else leaf, axes[name], found[name])
        for name in axes
    }


def buffers(axes: Axes, laid: dict[str, Any], steps: int) -> dict[str, Any]:
    """Returns room for what `steps` steps read; `laid` has the shapes of one."""

    def room(axis: int, leaf: Any) -> Array:
        shape = list(leaf.shape)
        shape[max(axis, 0)] = steps
        return jnp.zeros(shape, leaf.dtype)

    return {name: jax.tree.map(room, axes[name], laid[name]) for name in axes}


def put(axes: Axes, room: dict[str, Any], laid: dict[str, Any], step: Array) -> dict[str, Any]:
    """Writes what one step read."""

    def write(axis: int, all_: Array, one: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(all_, one, step, max(axis, 0))

    return {name: jax.tree.map(write, axes[name], room[name], laid[name]) for name in axes}


def joined(axes: Axes, first: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """Joins what was read of two pieces, one after the other."""

    def join(axis: int, *leaves: Array) -> Array:
        return jnp.concatenate(leaves, axis=max(axis, 0))

    return {name: jax.tree.map(join, axes[name], first[name], rest[name]) for name in axes}
