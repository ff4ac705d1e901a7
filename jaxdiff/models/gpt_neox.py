"""GPT-NeoX (arXiv:2204.06745) and Pythia (arXiv:2304.01373): parallel branches, LayerNorm."""

from typing import Any

from jaxdiff.models._rope_config import read_rope, write_rope
from jaxdiff.models.architecture import (
    ROTARY,
    Architecture,
    Ignored,
    Row,
    activation,
    activation_name,
    token_entries,
    token_ids,
)
from jaxdiff.models.spec import ModelConfig

_LAYER = "gpt_neox.layers.{i}."


def _spec(config: Any) -> ModelConfig:
    return ModelConfig(
        architecture=config.model_type,
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        d_mlp=config.intermediate_size,
        activation=activation(config),
        gated=False,
        norm="layer",
        norm_eps=config.layer_norm_eps,
        parallel=config.use_parallel_residual,
        rope=read_rope(config, config.rope_parameters),
        attention_bias=config.attention_bias,
        mlp_bias=True,
        tied=config.tie_word_embeddings,
        context=config.max_position_embeddings,
        **token_ids(config),
    )


def _config(spec: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.d_model,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "intermediate_size": spec.d_mlp,
        "hidden_act": activation_name(spec.activation),
        "layer_norm_eps": spec.norm_eps,
        "use_parallel_residual": spec.parallel,
        # A share that is left out would be a quarter.
        "rope_parameters": {"partial_rotary_factor": 1.0} | write_rope(spec.rope, spec),
        "attention_bias": spec.attention_bias,
        "tie_word_embeddings": spec.tied,
        "max_position_embeddings": spec.context,
        **token_entries(spec),
    }


GPT_NEOX = Architecture(
    model_type="gpt_neox",
    hf_class="GPTNeoXForCausalLM",
    about="GPT-NeoX and Pythia (arXiv:2204.06745, arXiv:2304.01373)",
    spec=_spec,
    config=_config,
    rows=(
        Row("gpt_neox.embed_in.weight", "embedding"),
        Row("embed_out.weight", "unembedding"),
        *(
            row
            for kind in ("weight", "bias")
            for row in (
                Row(f"gpt_neox.final_layer_norm.{kind}", f"final_norm.{kind}"),
                Row(f"{_LAYER}input_layernorm.{kind}", f"blocks.attn_norm.{kind}"),
                Row(f"{_LAYER}post_attention_layernorm.{kind}", f"blocks.mlp_norm.{kind}"),
                Row(
                    f"{_LAYER}attention.query_key_value.{kind}",
                    tuple(f"blocks.attn.{name}.{kind}" for name in "qkv"),
                    by_head=True,
                ),
                Row(f"{_LAYER}attention.dense.{kind}", f"blocks.attn.o.{kind}"),
                Row(f"{_LAYER}mlp.dense_h_to_4h.{kind}", f"blocks.mlp.up.{kind}"),
                Row(f"{_LAYER}mlp.dense_4h_to_h.{kind}", f"blocks.mlp.down.{kind}"),
            )
        ),
    ),
    ignored=(
        Ignored(r".*\.attention\.(bias|masked_bias)", "causal masks"),
        ROTARY,
    ),
    renamed=((r"lm_head\.", "embed_out."),),
)
