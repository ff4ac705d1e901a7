"""What tells one family of models from another: its settings and the names in its files."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxdiff.errors import JaxdiffError
from jaxdiff.models.spec import ModelConfig, Rope


class Row(NamedTuple):
    """One tensor name of a Hugging Face file, and where it is in `LM.params`.

    Both directions are read off the same row: matrices are `[out, in]` on both sides, so loading
    stacks the layers and saving takes them apart.

    Attributes:
        hf: Name in the file; `{i}` is the layer.
        path: Keys in the nested dict, joined by dots.
    """

    hf: str
    path: str


@dataclass(frozen=True)
class Architecture:
    """A family of models.

    Attributes:
        model_type: `model_type` in config.json.
        hf_class: Name of the class in transformers, written to config.json.
        spec: Makes a `ModelConfig` of a transformers config; raises JaxdiffError on what it cannot.
        config: Makes the family's own entries of config.json from a `ModelConfig`.
        rows: Every tensor that a model of the family may have.
    """

    model_type: str
    hf_class: str
    spec: Callable[[Any], ModelConfig]
    config: Callable[[ModelConfig], dict[str, Any]]
    rows: tuple[Row, ...]


LAYER = "model.layers.{i}."

# Names that Llama gave to the parts of a decoder and that its descendants kept.
DECODER_ROWS = (
    Row("model.embed_tokens.weight", "embedding"),
    *(
        Row(f"{LAYER}self_attn.{name}_proj.{kind}", f"blocks.attn.{name}.{kind}")
        for name in "qkvo"
        for kind in ("weight", "bias")
    ),
    *(
        Row(f"{LAYER}mlp.{name}_proj.{kind}", f"blocks.mlp.{name}.{kind}")
        for name in ("gate", "up", "down")
        for kind in ("weight", "bias")
    ),
    Row("model.norm.weight", "final_norm.weight"),
    Row("lm_head.weight", "unembedding"),
)


def decoder_spec(config: Any) -> dict[str, Any]:
    """Returns the fields of `ModelConfig` that all descendants of Llama's config name alike."""
    eos = config.eos_token_id
    return {
        "architecture": config.model_type,
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "d_mlp": config.intermediate_size,
        "n_kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "norm_eps": config.rms_norm_eps,
        "rope": _rope(config),
        "attention_bias": config.attention_bias,
        "tied": config.tie_word_embeddings,
        "context": config.max_position_embeddings,
        "bos": config.bos_token_id,
        "eos": () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
        "pad": config.pad_token_id,
    }


def decoder_config(spec: ModelConfig) -> dict[str, Any]:
    """Returns the entries of config.json that `decoder_spec` reads."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": spec.rope.theta}
    if spec.rope.factor != 1.0:
        rope |= {
            "rope_type": "llama3",
            "factor": spec.rope.factor,
            "low_freq_factor": spec.rope.low_freq,
            "high_freq_factor": spec.rope.high_freq,
            "original_max_position_embeddings": spec.rope.context,
        }
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.d_model,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "intermediate_size": spec.d_mlp,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.norm_eps,
        "rope_parameters": rope,
        "attention_bias": spec.attention_bias,
        "tie_word_embeddings": spec.tied,
        "max_position_embeddings": spec.context,
        "bos_token_id": spec.bos,
        "eos_token_id": None if not spec.eos else spec.eos[0] if len(spec.eos) == 1 else spec.eos,
        "pad_token_id": spec.pad,
    }


def require(config: Any, name: str, *allowed: Any) -> None:
    """Refuses a config whose entry `name` has a value that the decoder does not implement."""
    value = getattr(config, name, None)
    if value not in allowed:
        raise JaxdiffError(
            f"{config.model_type} with {name}={value!r} is not supported",
            where="config.json",
            fix=f"supported: {', '.join(map(repr, allowed))}",
        )


def _rope(config: Any) -> Rope:
    values = config.rope_parameters
    kind = values["rope_type"]
    if kind not in ("default", "llama3") or values.get("partial_rotary_factor", 1.0) != 1.0:
        raise JaxdiffError(
            f"{config.model_type} with rope_parameters={values!r} is not supported",
            where="config.json",
            fix="supported rope_type: default, llama3, both over the whole head",
        )
    if kind == "default":
        return Rope(theta=float(values["rope_theta"]))
    return Rope(
        theta=float(values["rope_theta"]),
        factor=float(values["factor"]),
        low_freq=float(values["low_freq_factor"]),
        high_freq=float(values["high_freq_factor"]),
        context=int(values["original_max_position_embeddings"]),
    )
