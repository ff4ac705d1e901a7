"""What can be done to an activation, as pytrees: edits of sites, views of values, reducers of taps.

    steer = edit("blocks.8.resid_post", Add(vector, strength=4.0), positions=-1)
    logits, _ = models.run(lm, tokens, edits=(steer,))

An edit's structure decides the program; its leaves (vectors, strengths, positions, layers) are
arguments of it.
"""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazy

if TYPE_CHECKING:
    from jaxdiff.edits import reducers as reducers
    from jaxdiff.edits._edit import Edit as Edit
    from jaxdiff.edits._edit import Op as Op
    from jaxdiff.edits._edit import edit as edit
    from jaxdiff.edits.ops import Add as Add

_HOMES = {
    "Add": "ops",
    "Clamp": "ops",
    "Edit": "_edit",
    "FromRow": "ops",
    "FromWorld": "ops",
    "Heads": "views",
    "Latents": "views",
    "Lerp": "ops",
    "LowRank": "ops",
    "Mean": "ops",
    "Noise": "ops",
    "Op": "_edit",
    "Patch": "ops",
    "PerLayer": "ops",
    "Reconstruct": "views",
    "Scale": "ops",
    "Set": "ops",
    "Skip": "ops",
    "Subspace": "views",
    "edit": "_edit",
    "select": "views",
    "span": "views",
}

__all__ = list(_HOMES)

__getattr__, __dir__ = lazy(__name__, _HOMES)
