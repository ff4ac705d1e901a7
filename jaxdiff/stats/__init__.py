"""Streaming statistics of activations and latents, folded over the data in one pass."""

from jaxdiff.stats.encoded import Encoded, encode
from jaxdiff.stats.scaling import Scaling, ScalingSums
from jaxdiff.stats.statistic import Statistic, fold, split

__all__ = ["Encoded", "Scaling", "ScalingSums", "Statistic", "encode", "fold", "split"]
