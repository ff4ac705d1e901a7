"""What causes what inside a model: sweeps of edits, attribution, paths, edits that are trained."""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazy

if TYPE_CHECKING:
    from jaxdiff.causal._attribution import attribute as attribute
    from jaxdiff.causal._paths import attribute_edges as attribute_edges
    from jaxdiff.causal._paths import patch_paths as patch_paths
    from jaxdiff.causal._sweep import sweep as sweep

_HOMES = {
    "attribute": "_attribution",
    "attribute_edges": "_paths",
    "patch_paths": "_paths",
    "sweep": "_sweep",
}

__all__ = ["attribute", "attribute_edges", "patch_paths", "sweep"]

__getattr__, __dir__ = lazy(__name__, _HOMES)
