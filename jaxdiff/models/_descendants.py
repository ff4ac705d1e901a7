"""What the descendants of Llama share: names of tensors and entries of config.json."""

from typing import Any

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._rope_config import read_rope, write_rope
from jaxdiff.models.architecture import (
    Row,
    activation,
    activation_name,
    token_entries,
    token_ids,
)
from jaxdiff.models.spec import ModelConfig

LAYER = "model.layers.{i}."
LOCAL, GLOBAL = "sliding_attention", "full_attention"

OUTER_ROWS = (
    Row("model.embed_tokens.weight", "embedding"),
    Row("model.norm.weight", "final_norm.weight"),
    Row("lm_head.weight", "unembedding"),
)
ATTENTION_ROWS = tuple(
    Row(f"{LAYER}self_attn.{name}_proj.{kind}", f"blocks.attn.{name}.{kind}")
    for name in "qkvo"
    for kind in ("weight", "bias")
)
QK_NORM_ROWS = tuple(
    Row(f"{LAYER}self_attn.{name}.weight", f"blocks.attn.{name}.weight")
    for name in ("q_norm", "k_norm")
)
MLP_ROWS = tuple(
    Row(f"{LAYER}mlp.{name}_proj.{kind}", f"blocks.mlp.{name}.{kind}")
    for name in ("gate", "up", "down")
    for kind in ("weight", "bias")
)
PRE_NORM_ROWS = (
    Row(f"{LAYER}input_layernorm.weight", "blocks.attn_norm.weight"),
    Row(f"{LAYER}post_attention_layernorm.weight", "blocks.mlp_norm.weight"),
)
# Gemma 2 and 3: `post_attention_layernorm` became a norm of the attention's output.
SANDWICH_NORM_ROWS = (
    Row(f"{LAYER}input_layernorm.weight", "blocks.attn_norm.weight"),
    Row(f"{LAYER}post_attention_layernorm.weight", "blocks.attn_post_norm.weight"),
    Row(f"{LAYER}pre_feedforward_layernorm.weight", "blocks.mlp_norm.weight"),
    Row(f"{LAYER}post_feedforward_layernorm.weight", "blocks.mlp_post_norm.weight"),
)
DECODER_ROWS = (*OUTER_ROWS, *ATTENTION_ROWS, *MLP_ROWS)


def decoder_spec(config: Any, *, act: str = "hidden_act") -> dict[str, Any]:
    """Returns the fields of `ModelConfig` that the configs name alike; biases are not among them.

    Args:
        config: Config of transformers.
        act: Its entry for the nonlinearity.

    Raises:
        JaxdiffError: If the config asks for what jaxdiff does not have.
    """
    # Gemma 3 has one entry of rope_parameters for each kind of layers, and reads them itself.
    rope = config.rope_parameters
    return {
        "architecture": config.model_type,
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "d_mlp": config.intermediate_size,
        "n_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or 0,
        "activation": activation(config, act),
        "norm_eps": config.rms_norm_eps,
        "rope": read_rope(config, rope.get(GLOBAL, rope)),
        "tied": config.tie_word_embeddings,
        "context": config.max_position_embeddings,
        **token_ids(config),
    }


def decoder_config(spec: ModelConfig, *, act: str = "hidden_act") -> dict[str, Any]:
    """Returns the entries of config.json that `decoder_spec` reads, with the same `act`."""
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.d_model,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "intermediate_size": spec.d_mlp,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        act: activation_name(spec.activation),
        "rms_norm_eps": spec.norm_eps,
        "rope_parameters": write_rope(spec.rope, spec),
        "tie_word_embeddings": spec.tied,
        "max_position_embeddings": spec.context,
        **token_entries(spec),
    }


def uniform_windows(config: Any) -> tuple[int | None, ...]:
    """Returns the windows of a family whose `sliding_window` is that of all layers."""
    window = config.sliding_window
    return () if window is None else (window,) * config.num_hidden_layers


def layer_windows(config: Any) -> tuple[int | None, ...]:
    """Returns the windows of a family whose `layer_types` say which layers have one.

    Raises:
        JaxdiffError: If a layer is of another type, or the window is not given.
    """
    kinds = config.layer_types
    unknown = set(kinds) - {LOCAL, GLOBAL}
    if unknown or (LOCAL in kinds and not config.sliding_window):
        raise JaxdiffError(
            f"{config.model_type} with layer_types={sorted(set(kinds))!r} and "
            f"sliding_window={config.sliding_window!r} is not supported",
            where="config.json",
            fix=f"layers are {GLOBAL!r}, or {LOCAL!r} with a sliding_window",
        )
    if LOCAL not in kinds:
        return ()
    return tuple(config.sliding_window if kind == LOCAL else None for kind in kinds)


def window_entries(spec: ModelConfig) -> dict[str, Any]:
    """Returns the entries of config.json that `layer_windows` reads."""
    windows = spec.windows or (None,) * spec.n_layers
    return {
        "layer_types": [GLOBAL if window is None else LOCAL for window in windows],
        "sliding_window": widest_window(spec),
    }


def widest_window(spec: ModelConfig) -> int | None:
    """Returns the one size [tokens] that the windows of a model have in its config.json."""
    return max((window for window in spec.windows if window is not None), default=None)
