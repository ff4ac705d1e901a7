"""How a model's parameters are laid out over a mesh."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from jaxdiff.mesh import LATENT, sharding


def shardings(shapes: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Returns a sharding for every parameter.

    Matrices, also those of experts, are split over the `latent` axis by output, so that a shard is
    a run of whole rows of most files; by input where the outputs do not divide. Norms and biases
    are on every device, and so is the router: every device chooses the experts itself.

    Args:
        shapes: Nested dict of the parameters' shapes; its `blocks` may be a tuple of layers.
        mesh: Mesh with an axis `latent`.
    """
    parts = mesh.shape[LATENT]

    def rule(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [part.key for part in path if hasattr(part, "key")]
        whole = names[-1] == "bias" or any(n.endswith("norm") or n == "router" for n in names)
        if not whole:
            last = len(leaf.shape) - 1
            for axis in (last - 1, last):
                if leaf.shape[axis] % parts == 0:
                    return sharding(mesh, *[None] * axis, LATENT)
        return sharding(mesh)

    return jax.tree_util.tree_map_with_path(rule, dict(shapes))
