"""Phi 3 and 4 (arXiv:2404.14219, arXiv:2412.08905): Llama with joined matrices and LongRoPE."""

from typing import Any

from jaxdiff.models._descendants import (
    LAYER,
    OUTER_ROWS,
    PRE_NORM_ROWS,
    decoder_config,
    decoder_spec,
    uniform_windows,
    widest_window,
)
from jaxdiff.models.architecture import ROTARY, Architecture, Row
from jaxdiff.models.spec import ModelConfig


def _spec(config: Any) -> ModelConfig:
    return ModelConfig(**decoder_spec(config), windows=uniform_windows(config))


def _config(spec: ModelConfig) -> dict[str, Any]:
    rope = spec.rope
    context = rope.context if rope is not None and rope.kind == "longrope" else spec.context
    return decoder_config(spec) | {
        "original_max_position_embeddings": context,
        "sliding_window": widest_window(spec),
    }


PHI3 = Architecture(
    model_type="phi3",
    hf_class="Phi3ForCausalLM",
    about="Phi 3, 3.5 and 4 (arXiv:2404.14219, arXiv:2412.08905)",
    spec=_spec,
    config=_config,
    rows=(
        *OUTER_ROWS,
        *PRE_NORM_ROWS,
        Row(
            f"{LAYER}self_attn.qkv_proj.weight",
            tuple(f"blocks.attn.{name}.weight" for name in "qkv"),
        ),
        Row(f"{LAYER}self_attn.o_proj.weight", "blocks.attn.o.weight"),
        Row(
            f"{LAYER}mlp.gate_up_proj.weight",
            ("blocks.mlp.gate.weight", "blocks.mlp.up.weight"),
        ),
        Row(f"{LAYER}mlp.down_proj.weight", "blocks.mlp.down.weight"),
    ),
    ignored=(ROTARY,),
)
