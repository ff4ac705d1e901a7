"""How a model's parameters are laid out over a mesh."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from jaxdiff.mesh import LATENT, sharding


def shardings(shapes: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Returns a sharding for every parameter.

    Matrices are split over the `latent` axis by output, so that a shard is a run of whole rows of
    the file; by input where the outputs do not divide. Norms and biases are on every device.

    Args:
        shapes: Nested dict of the parameters' shapes.
        mesh: Mesh with an axis `latent`.
    """
    parts = mesh.shape[LATENT]

    def rule(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        layers = int(path[0].key == "blocks")
        if len(leaf.shape) - layers == 2:
            for axis in (layers, layers + 1):
                if leaf.shape[axis] % parts == 0:
                    return sharding(mesh, *[None] * axis, LATENT)
        return sharding(mesh)

    return jax.tree_util.tree_map_with_path(rule, dict(shapes))
