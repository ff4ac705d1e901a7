"""OLMo 2 (arXiv:2501.00656): norms after both branches, none before; norms of queries and keys."""

from typing import Any

from jaxdiff.models._descendants import (
    DECODER_ROWS,
    LAYER,
    QK_NORM_ROWS,
    decoder_config,
    decoder_spec,
)
from jaxdiff.models.architecture import ROTARY, Architecture, Row
from jaxdiff.models.spec import ModelConfig


def _spec(config: Any) -> ModelConfig:
    return ModelConfig(
        **decoder_spec(config),
        pre_norms=False,
        post_norms=True,
        qk_norm="all",
        attention_bias=config.attention_bias,
    )


def _config(spec: ModelConfig) -> dict[str, Any]:
    return decoder_config(spec) | {"attention_bias": spec.attention_bias}


OLMO2 = Architecture(
    model_type="olmo2",
    hf_class="Olmo2ForCausalLM",
    about="OLMo 2 (arXiv:2501.00656)",
    spec=_spec,
    config=_config,
    rows=(
        *DECODER_ROWS,
        *QK_NORM_ROWS,
        Row(f"{LAYER}post_attention_layernorm.weight", "blocks.attn_post_norm.weight"),
        Row(f"{LAYER}post_feedforward_layernorm.weight", "blocks.mlp_post_norm.weight"),
    ),
    ignored=(ROTARY,),
)
