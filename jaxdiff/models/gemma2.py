"""Gemma 2 (arXiv:2408.00118): norms around both branches, soft caps, every other layer local."""

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

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def _spec(config: Any) -> ModelConfig:
    require(config, "hidden_activation", "gelu_pytorch_tanh")
    require(config, "use_bidirectional_attention", None, False)
    return ModelConfig(
        **decoder_spec(config),
        activation="gelu_tanh",
        norm_offset=1.0,
        post_norms=True,
        attention_scale=config.query_pre_attn_scalar**-0.5,
        attention_softcap=config.attn_logit_softcapping,
        windows=tuple(
            config.sliding_window if kind == _LOCAL else None for kind in config.layer_types
        ),
        embed_scale=True,
        logit_softcap=config.final_logit_softcapping,
    )


def _config(spec: ModelConfig) -> dict[str, Any]:
    windows = spec.windows or (None,) * spec.n_layers
    return decoder_config(spec) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(spec.attention_scale**-2),
        "attn_logit_softcapping": spec.attention_softcap,
        "final_logit_softcapping": spec.logit_softcap,
        "layer_types": [_GLOBAL if window is None else _LOCAL for window in windows],
        "sliding_window": next((window for window in windows if window is not None), None),
    }


GEMMA2 = Architecture(
    model_type="gemma2",
    hf_class="Gemma2ForCausalLM",
    spec=_spec,
    config=_config,
    rows=(
        *DECODER_ROWS,
        Row(f"{LAYER}input_layernorm.weight", "blocks.attn_norm.weight"),
        Row(f"{LAYER}post_attention_layernorm.weight", "blocks.attn_post_norm.weight"),
        Row(f"{LAYER}pre_feedforward_layernorm.weight", "blocks.mlp_norm.weight"),
        Row(f"{LAYER}post_feedforward_layernorm.weight", "blocks.mlp_post_norm.weight"),
    ),
)
