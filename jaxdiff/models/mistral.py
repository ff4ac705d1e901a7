"""Mistral (arXiv:2310.06825): Llama with a window in every layer, or in none."""

from typing import Any

from jaxdiff.models._descendants import (
    DECODER_ROWS,
    PRE_NORM_ROWS,
    decoder_config,
    decoder_spec,
    uniform_windows,
    widest_window,
)
from jaxdiff.models.architecture import ROTARY, Architecture
from jaxdiff.models.spec import ModelConfig


def _spec(config: Any) -> ModelConfig:
    return ModelConfig(**decoder_spec(config), windows=uniform_windows(config))


def _config(spec: ModelConfig) -> dict[str, Any]:
    return decoder_config(spec) | {"sliding_window": widest_window(spec)}


MISTRAL = Architecture(
    model_type="mistral",
    hf_class="MistralForCausalLM",
    about="Mistral 7B, Nemo and Small (arXiv:2310.06825)",
    spec=_spec,
    config=_config,
    rows=(*DECODER_ROWS, *PRE_NORM_ROWS),
    ignored=(ROTARY,),
)
