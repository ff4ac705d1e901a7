"""Qwen 3 mixture of experts (arXiv:2505.09388): each token goes through a few of many MLPs."""

from typing import Any

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._descendants import (
    ATTENTION_ROWS,
    LAYER,
    OUTER_ROWS,
    PRE_NORM_ROWS,
    QK_NORM_ROWS,
    decoder_config,
    decoder_spec,
    uniform_windows,
    widest_window,
)
from jaxdiff.models.architecture import ROTARY, Architecture, Row, require
from jaxdiff.models.spec import ModelConfig


def _spec(config: Any) -> ModelConfig:
    require(config, "decoder_sparse_step", 1)
    if config.mlp_only_layers:
        raise JaxdiffError(
            f"{config.model_type} with mlp_only_layers={config.mlp_only_layers!r} is not supported",
            where="config.json",
            fix="supported: experts in every layer",
        )
    return ModelConfig(
        **decoder_spec(config) | {"d_mlp": config.moe_intermediate_size},
        qk_norm="head",
        windows=uniform_windows(config),
        attention_bias=config.attention_bias,
        experts=config.num_experts,
        experts_per_token=config.num_experts_per_tok,
        normalize_experts=config.norm_topk_prob,
    )


def _config(spec: ModelConfig) -> dict[str, Any]:
    return decoder_config(spec) | {
        "attention_bias": spec.attention_bias,
        "use_sliding_window": bool(spec.windows),
        "sliding_window": widest_window(spec),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": spec.d_mlp,
        "num_experts": spec.experts,
        "num_experts_per_tok": spec.experts_per_token,
        "norm_topk_prob": spec.normalize_experts,
    }


QWEN3_MOE = Architecture(
    model_type="qwen3_moe",
    hf_class="Qwen3MoeForCausalLM",
    about="Qwen 3 mixture of experts (arXiv:2505.09388)",
    spec=_spec,
    config=_config,
    rows=(
        *OUTER_ROWS,
        *ATTENTION_ROWS,
        *PRE_NORM_ROWS,
        *QK_NORM_ROWS,
        Row(f"{LAYER}mlp.gate.weight", "blocks.mlp.router.weight"),
        *(
            Row(f"{LAYER}mlp.experts.{{e}}.{name}_proj.weight", f"blocks.mlp.{name}.weight")
            for name in ("gate", "up", "down")
        ),
    ),
    ignored=(ROTARY,),
)
