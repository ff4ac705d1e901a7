"""Llama 2 and 3 (arXiv:2307.09288, arXiv:2407.21783)."""

from typing import Any

from jaxdiff.models._descendants import (
    DECODER_ROWS,
    PRE_NORM_ROWS,
    decoder_config,
    decoder_spec,
)
from jaxdiff.models.architecture import ROTARY, Architecture
from jaxdiff.models.spec import ModelConfig


def _spec(config: Any) -> ModelConfig:
    return ModelConfig(
        **decoder_spec(config), attention_bias=config.attention_bias, mlp_bias=config.mlp_bias
    )


def _config(spec: ModelConfig) -> dict[str, Any]:
    return decoder_config(spec) | {
        "attention_bias": spec.attention_bias,
        "mlp_bias": spec.mlp_bias,
    }


LLAMA = Architecture(
    model_type="llama",
    hf_class="LlamaForCausalLM",
    about="Llama 2 and 3 (arXiv:2307.09288, arXiv:2407.21783)",
    spec=_spec,
    config=_config,
    rows=(*DECODER_ROWS, *PRE_NORM_ROWS),
    ignored=(ROTARY,),
)
