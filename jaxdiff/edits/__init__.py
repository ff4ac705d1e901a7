"""What can be done to an activation, as pytrees: edits of sites, views of values, reducers of taps.

    steer = edit("blocks.8.resid_post", Add(vector, strength=4.0), positions=-1)
    logits, _ = models.run(lm, tokens, edits=(steer,))

An edit's structure decides the program; its leaves (vectors, strengths, positions, layers) are
arguments of it.
"""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazy

if TYPE_CHECKING:
    from jaxdiff.edits._edit import Edit as Edit
    from jaxdiff.edits._edit import Op as Op
    from jaxdiff.edits._edit import edit as edit
    from jaxdiff.edits._files import content_hash as content_hash
    from jaxdiff.edits._files import dumps as dumps
    from jaxdiff.edits._files import load as load
    from jaxdiff.edits._files import loads as loads
    from jaxdiff.edits._files import save as save
    from jaxdiff.edits.around import Backward as Backward
    from jaxdiff.edits.around import PerLayer as PerLayer
    from jaxdiff.edits.latents import Latents as Latents
    from jaxdiff.edits.latents import Reconstruct as Reconstruct
    from jaxdiff.edits.ops import Add as Add
    from jaxdiff.edits.ops import Clamp as Clamp
    from jaxdiff.edits.ops import Lerp as Lerp
    from jaxdiff.edits.ops import LowRank as LowRank
    from jaxdiff.edits.ops import Noise as Noise
    from jaxdiff.edits.ops import Scale as Scale
    from jaxdiff.edits.ops import Set as Set
    from jaxdiff.edits.ops import Skip as Skip
    from jaxdiff.edits.ops import ToMean as ToMean
    from jaxdiff.edits.reducers import Chain as Chain
    from jaxdiff.edits.reducers import Last as Last
    from jaxdiff.edits.reducers import Mean as Mean
    from jaxdiff.edits.reducers import Norm as Norm
    from jaxdiff.edits.reducers import Project as Project
    from jaxdiff.edits.reducers import TopK as TopK
    from jaxdiff.edits.sources import FromRow as FromRow
    from jaxdiff.edits.sources import FromWorld as FromWorld
    from jaxdiff.edits.sources import Patch as Patch
    from jaxdiff.edits.views import Heads as Heads
    from jaxdiff.edits.views import Subspace as Subspace
    from jaxdiff.edits.views import orthonormal as orthonormal

# Flax is imported, by the models, at the first use of one of these names.
_HOMES = {
    "Add": "ops",
    "Backward": "around",
    "Chain": "reducers",
    "Clamp": "ops",
    "Edit": "_edit",
    "FromRow": "sources",
    "FromWorld": "sources",
    "Heads": "views",
    "Last": "reducers",
    "Latents": "latents",
    "Lerp": "ops",
    "LowRank": "ops",
    "Mean": "reducers",
    "Noise": "ops",
    "Norm": "reducers",
    "Op": "_edit",
    "Patch": "sources",
    "PerLayer": "around",
    "Project": "reducers",
    "Reconstruct": "latents",
    "Scale": "ops",
    "Set": "ops",
    "Skip": "ops",
    "Subspace": "views",
    "ToMean": "ops",
    "TopK": "reducers",
    "content_hash": "_files",
    "dumps": "_files",
    "edit": "_edit",
    "load": "_files",
    "loads": "_files",
    "orthonormal": "views",
    "save": "_files",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy(__name__, _HOMES)
