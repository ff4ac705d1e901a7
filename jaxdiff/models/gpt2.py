"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, transposed and joined matrices."""

from typing import Any

from jaxdiff.models.architecture import (
    Architecture,
    Ignored,
    Row,
    activation,
    require,
    token_entries,
    token_ids,
)
from jaxdiff.models.spec import ModelConfig

_LAYER = "transformer.h.{i}."


def _spec(config: Any) -> ModelConfig:
    require(config, "scale_attn_by_inverse_layer_idx", False)
    require(config, "add_cross_attention", False)
    return ModelConfig(
        architecture=config.model_type,
        vocab_size=config.vocab_size,
        d_model=config.n_embd,
        n_layers=config.n_layer,
        n_heads=config.n_head,
        d_mlp=config.n_inner or 4 * config.n_embd,
        activation=activation(config, "activation_function"),
        gated=False,
        norm="layer",
        norm_eps=config.layer_norm_epsilon,
        rope=None,
        attention_scale=0.0 if config.scale_attn_weights else 1.0,
        attention_bias=True,
        mlp_bias=True,
        tied=config.tie_word_embeddings,
        context=config.n_positions,
        **token_ids(config),
    )


def _config(spec: ModelConfig) -> dict[str, Any]:
    kind = spec.activation
    return {
        "vocab_size": spec.vocab_size,
        "n_embd": spec.d_model,
        "n_layer": spec.n_layers,
        "n_head": spec.n_heads,
        "n_inner": spec.d_mlp,
        "activation_function": "gelu_new" if kind == "gelu_tanh" else kind,
        "layer_norm_epsilon": spec.norm_eps,
        "scale_attn_weights": spec.attention_scale != 1.0,
        "tie_word_embeddings": spec.tied,
        "n_positions": spec.context,
        **token_entries(spec),
    }


GPT2 = Architecture(
    model_type="gpt2",
    hf_class="GPT2LMHeadModel",
    about="GPT-2 and DistilGPT-2 (Radford et al., 2019)",
    spec=_spec,
    config=_config,
    rows=(
        Row("transformer.wte.weight", "embedding"),
        Row("transformer.wpe.weight", "position_embedding"),
        Row("lm_head.weight", "unembedding"),
        *(
            row
            for kind in ("weight", "bias")
            for row in (
                Row(f"transformer.ln_f.{kind}", f"final_norm.{kind}"),
                Row(f"{_LAYER}ln_1.{kind}", f"blocks.attn_norm.{kind}"),
                Row(f"{_LAYER}ln_2.{kind}", f"blocks.mlp_norm.{kind}"),
                Row(
                    f"{_LAYER}attn.c_attn.{kind}",
                    tuple(f"blocks.attn.{name}.{kind}" for name in "qkv"),
                    transposed=kind == "weight",
                ),
                *(
                    Row(f"{_LAYER}{name}.{kind}", f"blocks.{path}.{kind}", kind == "weight")
                    for name, path in (
                        ("attn.c_proj", "attn.o"),
                        ("mlp.c_fc", "mlp.up"),
                        ("mlp.c_proj", "mlp.down"),
                    )
                ),
            )
        ),
    ),
    ignored=(Ignored(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)", "causal masks"),),
    # The first checkpoints were saved without the head, and so without the prefix.
    renamed=((r"(?=(wte|wpe|h|ln_f)\.)", "transformer."),),
)
