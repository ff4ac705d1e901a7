"""The architectures that jaxdiff knows.

To add one, write a file like llama.py and a row here; `ModelConfig` has the features to combine.
"""

from pathlib import Path

from jaxdiff.errors import JaxdiffError
from jaxdiff.models.architecture import Architecture
from jaxdiff.models.gemma2 import GEMMA2
from jaxdiff.models.llama import LLAMA

ARCHITECTURES = {known.model_type: known for known in (LLAMA, GEMMA2)}


def architecture(model_type: str | None, *, where: Path | str) -> Architecture:
    """Returns the architecture of a `model_type`.

    Raises:
        JaxdiffError: If there is none.
    """
    if model_type not in ARCHITECTURES:
        raise JaxdiffError(
            f"the architecture {model_type!r} is not supported",
            where=where,
            fix=f"supported: {', '.join(ARCHITECTURES)}; "
            "to add one, write a file like jaxdiff/models/llama.py and a row in registry.py",
        )
    return ARCHITECTURES[model_type]
