"""Comparing two models through a dictionary that was trained on both."""

from jaxdiff.diffing.auroc import auroc, sparse_auroc
from jaxdiff.diffing.latent_scaling import LatentScaling, latent_scaling, scaling_statistic
from jaxdiff.diffing.norms import classes, cosine, relative_norm, sides
from jaxdiff.diffing.verdicts import VERDICTS, verdicts

__all__ = [
    "VERDICTS",
    "LatentScaling",
    "auroc",
    "classes",
    "cosine",
    "latent_scaling",
    "relative_norm",
    "scaling_statistic",
    "sides",
    "sparse_auroc",
    "verdicts",
]
