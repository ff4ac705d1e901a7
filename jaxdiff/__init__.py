"""Model diffing in JAX: what did fine-tuning change inside this language model?

    from jaxdiff import activations, diffing, models, text, training

Each part is a subpackage that is imported on its own; see the API map of the README.
"""

import importlib
import importlib.metadata
from typing import Any

from jaxdiff._xla import avoid_wrong_sums

avoid_wrong_sums()

__version__ = importlib.metadata.version("jaxdiff")

__all__ = [
    "__version__",
    "activations",
    "causal",
    "config",
    "configs",
    "dictionaries",
    "diffing",
    "edits",
    "estimate",
    "kernels",
    "mesh",
    "models",
    "organisms",
    "pipeline",
    "readouts",
    "report",
    "stats",
    "text",
    "training",
    "types",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}")
    return importlib.import_module(f"jaxdiff.{name}")
