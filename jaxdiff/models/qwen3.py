"""Qwen 3 (arXiv:2505.09388): Llama with a norm of each head's queries and keys."""

from typing import Any

from jaxdiff.models._descendants import (
    DECODER_ROWS,
    PRE_NORM_ROWS,
    QK_NORM_ROWS,
    decoder_config,
    decoder_spec,
    layer_windows,
    window_entries,
)
from jaxdiff.models.architecture import ROTARY, Architecture
from jaxdiff.models.spec import ModelConfig


def _spec(config: Any) -> ModelConfig:
    return ModelConfig(
        **decoder_spec(config),
        qk_norm="head",
        windows=layer_windows(config),
        attention_bias=config.attention_bias,
    )


def _config(spec: ModelConfig) -> dict[str, Any]:
    return decoder_config(spec) | {
        "attention_bias": spec.attention_bias,
        "use_sliding_window": bool(spec.windows),
        **window_entries(spec),
    }


QWEN3 = Architecture(
    model_type="qwen3",
    hf_class="Qwen3ForCausalLM",
    about="Qwen 3, dense (arXiv:2505.09388)",
    spec=_spec,
    config=_config,
    rows=(*DECODER_ROWS, *PRE_NORM_ROWS, *QK_NORM_ROWS),
    ignored=(ROTARY,),
)
