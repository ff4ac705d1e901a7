"""Streaming statistics of activations and latents, folded over the data in one pass."""

from jaxdiff.stats.blocks import InMemory, Rows, blocks, pad
from jaxdiff.stats.encoded import Encoded, encode
from jaxdiff.stats.firing import Firing, FiringResult
from jaxdiff.stats.scaling import Scaling, ScalingSums
from jaxdiff.stats.statistic import Statistic, fold
from jaxdiff.stats.strongest import Strongest, StrongestRows
from jaxdiff.stats.variance import Fve, Variance

__all__ = [
    "Encoded",
    "Firing",
    "FiringResult",
    "Fve",
    "InMemory",
    "Rows",
    "Scaling",
    "ScalingSums",
    "Statistic",
    "Strongest",
    "StrongestRows",
    "Variance",
    "blocks",
    "encode",
    "fold",
    "pad",
]
