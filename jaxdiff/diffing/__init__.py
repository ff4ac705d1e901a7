"""Comparing two models through a dictionary that was trained on both."""

from jaxdiff.diffing.auroc import auroc, sparse_auroc
from jaxdiff.diffing.dictionary_diff import DictionaryDiff, diff
from jaxdiff.diffing.examples import Example
from jaxdiff.diffing.latent_scaling import LatentScaling, latent_scaling, scaling_statistic
from jaxdiff.diffing.norms import CLASSES, classes, cosine, relative_norm, sides
from jaxdiff.diffing.truth import Behaviour, Match
from jaxdiff.diffing.verdicts import VERDICTS, reasons, verdicts

__all__ = [
    "CLASSES",
    "VERDICTS",
    "Behaviour",
    "DictionaryDiff",
    "Example",
    "LatentScaling",
    "Match",
    "auroc",
    "classes",
    "cosine",
    "diff",
    "latent_scaling",
    "reasons",
    "relative_norm",
    "scaling_statistic",
    "sides",
    "sparse_auroc",
    "verdicts",
]
