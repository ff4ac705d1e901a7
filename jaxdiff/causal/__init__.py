"""What causes what inside a model: sweeps of edits, attribution, paths, edits that are trained."""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazy

if TYPE_CHECKING:
    from jaxdiff.causal._attribution import attribute as attribute
    from jaxdiff.causal._das import Alignment as Alignment
    from jaxdiff.causal._das import Interchanges as Interchanges
    from jaxdiff.causal._das import das as das
    from jaxdiff.causal._paths import attribute_edges as attribute_edges
    from jaxdiff.causal._paths import patch_paths as patch_paths
    from jaxdiff.causal._sweep import sweep as sweep
    from jaxdiff.causal._training import train_edits as train_edits
    from jaxdiff.causal._verify import verify as verify

_HOMES = {
    "Alignment": "_das",
    "Interchanges": "_das",
    "attribute": "_attribution",
    "attribute_edges": "_paths",
    "das": "_das",
    "patch_paths": "_paths",
    "sweep": "_sweep",
    "train_edits": "_training",
    "verify": "_verify",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy(__name__, _HOMES)
