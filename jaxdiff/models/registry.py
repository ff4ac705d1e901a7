"""The architectures that jaxdiff knows.

To add one, write a file like llama.py and name it here; `ModelConfig` has the features to combine.
"""

from pathlib import Path

from jaxdiff.errors import JaxdiffError
from jaxdiff.models.architecture import Architecture
from jaxdiff.models.gemma import GEMMA
from jaxdiff.models.gemma2 import GEMMA2
from jaxdiff.models.gemma3 import GEMMA3, GEMMA3_TEXT
from jaxdiff.models.gpt2 import GPT2
from jaxdiff.models.gpt_neox import GPT_NEOX
from jaxdiff.models.llama import LLAMA
from jaxdiff.models.mistral import MISTRAL
from jaxdiff.models.olmo2 import OLMO2
from jaxdiff.models.phi3 import PHI3
from jaxdiff.models.qwen2 import QWEN2
from jaxdiff.models.qwen3 import QWEN3
from jaxdiff.models.qwen3_moe import QWEN3_MOE

ARCHITECTURES = {
    known.model_type: known
    for known in (
        GPT2,
        GPT_NEOX,
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        QWEN3_MOE,
        GEMMA,
        GEMMA2,
        GEMMA3_TEXT,
        GEMMA3,
        OLMO2,
        PHI3,
    )
}

HOW_TO_ADD = "to add one, write a file like jaxdiff/models/llama.py and name it in registry.py"


def architecture(model_type: str | None, *, where: Path | str) -> Architecture:
    """Returns the architecture of a `model_type`.

    Raises:
        JaxdiffError: If there is none.
    """
    if model_type not in ARCHITECTURES:
        raise JaxdiffError(
            f"the architecture {model_type!r} is not supported",
            where=where,
            fix=f"supported: {', '.join(ARCHITECTURES)}; {HOW_TO_ADD}",
        )
    return ARCHITECTURES[model_type]
