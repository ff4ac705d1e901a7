"""Gemma 3 (arXiv:2503.19786), its text part: norms of queries and keys, two rotary embeddings."""

import dataclasses
from typing import Any

from jaxdiff.models._descendants import (
    DECODER_ROWS,
    GLOBAL,
    LOCAL,
    QK_NORM_ROWS,
    SANDWICH_NORM_ROWS,
    decoder_config,
    decoder_spec,
    layer_windows,
    window_entries,
)
from jaxdiff.models._rope_config import read_rope, write_rope
from jaxdiff.models.architecture import ROTARY, Architecture, Ignored, require, token_ids
from jaxdiff.models.spec import ModelConfig


def _spec(config: Any) -> ModelConfig:
    require(config, "use_bidirectional_attention", None, False)
    require(config, "attn_logit_softcapping", None)
    return ModelConfig(
        **decoder_spec(config, act="hidden_activation"),
        norm_offset=1.0,
        post_norms=True,
        qk_norm="head",
        local_rope=read_rope(config, config.rope_parameters[LOCAL]),
        attention_scale=config.query_pre_attn_scalar**-0.5,
        windows=layer_windows(config),
        attention_bias=config.attention_bias,
        embed_scale=True,
        logit_softcap=config.final_logit_softcapping,
    )


def _config(spec: ModelConfig) -> dict[str, Any]:
    return decoder_config(spec, act="hidden_activation") | {
        "query_pre_attn_scalar": round(spec.attention_scale**-2),
        "final_logit_softcapping": spec.logit_softcap,
        "attention_bias": spec.attention_bias,
        "rope_parameters": {
            GLOBAL: write_rope(spec.rope, spec),
            LOCAL: write_rope(spec.local_rope, spec),
        },
        **window_entries(spec),
    }


def _text_spec(config: Any) -> ModelConfig:
    spec = _spec(config.text_config)
    ids = {name: value for name, value in token_ids(config).items() if value not in (None, ())}
    return dataclasses.replace(spec, **ids, tied=config.tie_word_embeddings)


GEMMA3_TEXT = Architecture(
    model_type="gemma3_text",
    hf_class="Gemma3ForCausalLM",
    about="Gemma 3, text only (arXiv:2503.19786)",
    spec=_spec,
    config=_config,
    rows=(*DECODER_ROWS, *SANDWICH_NORM_ROWS, *QK_NORM_ROWS),
    ignored=(
        ROTARY,
        Ignored(
            r"(model\.)?(vision_tower|multi_modal_projector)\..*",
            "weights of the part that reads images",
        ),
    ),
    # How checkpoints that also read images name their text part.
    renamed=(
        (r"language_model\.lm_head\.", "lm_head."),
        (r"(language_model\.model|model\.language_model)\.", "model."),
    ),
)

# Loaded, it is its text part, and is saved as that.
GEMMA3 = dataclasses.replace(
    GEMMA3_TEXT,
    model_type="gemma3",
    hf_class="Gemma3ForConditionalGeneration",
    about="Gemma 3 with images: its text part",
    spec=_text_spec,
)
