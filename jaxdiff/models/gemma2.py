"""Gemma 2 (arXiv:2408.00118): norms around both branches, soft caps, every other layer local."""

from typing import Any

from jaxdiff.models._descendants import (
    DECODER_ROWS,
    SANDWICH_NORM_ROWS,
    decoder_config,
    decoder_spec,
    layer_windows,
    window_entries,
)
from jaxdiff.models.architecture import ROTARY, Architecture, require
from jaxdiff.models.spec import ModelConfig


def _spec(config: Any) -> ModelConfig:
    require(config, "use_bidirectional_attention", None, False)
    return ModelConfig(
        **decoder_spec(config, act="hidden_activation"),
        norm_offset=1.0,
        post_norms=True,
        attention_scale=config.query_pre_attn_scalar**-0.5,
        attention_softcap=config.attn_logit_softcapping,
        windows=layer_windows(config),
        attention_bias=config.attention_bias,
        embed_scale=True,
        logit_softcap=config.final_logit_softcapping,
    )


def _config(spec: ModelConfig) -> dict[str, Any]:
    return decoder_config(spec, act="hidden_activation") | {
        "query_pre_attn_scalar": round(spec.attention_scale**-2),
        "attn_logit_softcapping": spec.attention_softcap,
        "final_logit_softcapping": spec.logit_softcap,
        "attention_bias": spec.attention_bias,
        **window_entries(spec),
    }


GEMMA2 = Architecture(
    model_type="gemma2",
    hf_class="Gemma2ForCausalLM",
    about="Gemma 2 (arXiv:2408.00118)",
    spec=_spec,
    config=_config,
    rows=(*DECODER_ROWS, *SANDWICH_NORM_ROWS),
    ignored=(ROTARY,),
)
