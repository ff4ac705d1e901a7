"""Qwen 2 and 2.5 (arXiv:2407.10671, arXiv:2412.15115): Llama with biases of q, k and v."""

from typing import Any

from jaxdiff.models._descendants import (
    DECODER_ROWS,
    PRE_NORM_ROWS,
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
        windows=layer_windows(config),
        attention_bias=True,
        attention_out_bias=False,
    )


def _config(spec: ModelConfig) -> dict[str, Any]:
    return decoder_config(spec) | window_entries(spec) | {"use_sliding_window": bool(spec.windows)}


QWEN2 = Architecture(
    model_type="qwen2",
    hf_class="Qwen2ForCausalLM",
    about="Qwen 2 and 2.5 (arXiv:2407.10671, arXiv:2412.15115)",
    spec=_spec,
    config=_config,
    rows=(*DECODER_ROWS, *PRE_NORM_ROWS),
    ignored=(ROTARY,),
)
