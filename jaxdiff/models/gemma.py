"""Gemma (arXiv:2403.08295): Llama with scaled embeddings, norms around 1, and GELU."""

from typing import Any

from jaxdiff.models._descendants import (
    DECODER_ROWS,
    PRE_NORM_ROWS,
    decoder_config,
    decoder_spec,
)
from jaxdiff.models.architecture import ROTARY, Architecture, require
from jaxdiff.models.spec import ModelConfig


def _spec(config: Any) -> ModelConfig:
    require(config, "use_bidirectional_attention", None, False)
    return ModelConfig(
        **decoder_spec(config),
        norm_offset=1.0,
        attention_bias=config.attention_bias,
        embed_scale=True,
    )


def _config(spec: ModelConfig) -> dict[str, Any]:
    return decoder_config(spec) | {"attention_bias": spec.attention_bias}


GEMMA = Architecture(
    model_type="gemma",
    hf_class="GemmaForCausalLM",
    about="Gemma (arXiv:2403.08295)",
    spec=_spec,
    config=_config,
    rows=(*DECODER_ROWS, *PRE_NORM_ROWS),
    ignored=(ROTARY,),
)
