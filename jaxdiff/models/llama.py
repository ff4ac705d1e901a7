"""Llama 2 and 3 (arXiv:2307.09288, arXiv:2407.21783)."""

from typing import Any

from jaxdiff.models.architecture import (
    DECODER_ROWS,
    LAYER,
    Architecture,
    Row,
    decoder_config,
    decoder_spec,
    require,
)
from jaxdiff.models.spec import ModelConfig


def _spec(config: Any) -> ModelConfig:
    require(config, "hidden_act", "silu")
    return ModelConfig(**decoder_spec(config), mlp_bias=config.mlp_bias)


def _config(spec: ModelConfig) -> dict[str, Any]:
    return decoder_config(spec) | {"hidden_act": "silu", "mlp_bias": spec.mlp_bias}


LLAMA = Architecture(
    model_type="llama",
    hf_class="LlamaForCausalLM",
    spec=_spec,
    config=_config,
    rows=(
        *DECODER_ROWS,
        Row(f"{LAYER}input_layernorm.weight", "blocks.attn_norm.weight"),
        Row(f"{LAYER}post_attention_layernorm.weight", "blocks.mlp_norm.weight"),
    ),
)
