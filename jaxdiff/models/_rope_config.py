"""Rotary positions as config.json describes them."""

import math
from typing import Any

from jaxdiff.errors import JaxdiffError
from jaxdiff.models.spec import ModelConfig, Rope

_KINDS = ("default", "linear", "llama3", "longrope")


def read_rope(config: Any, values: dict[str, Any]) -> Rope:
    """Makes a `Rope` of `rope_parameters`, or of the part of it for one kind of layers.

    Raises:
        JaxdiffError: If its kind is not supported.
    """
    kind = values["rope_type"]
    if kind not in _KINDS:
        raise JaxdiffError(
            f"{config.model_type} with rope_parameters={values!r} is not supported",
            where="config.json",
            fix=f"supported rope_type: {', '.join(_KINDS)}",
        )
    share = values.get("partial_rotary_factor") or 1.0
    head_dim = getattr(config, "head_dim", None)
    head_dim = head_dim or config.hidden_size // config.num_attention_heads
    fields: dict[str, Any] = {
        "theta": float(values["rope_theta"]),
        "dim": 0 if share == 1.0 else int(head_dim * share),
        "kind": kind,
    }
    if kind in ("linear", "llama3"):
        fields |= {"factor": float(values["factor"])}
    if kind == "llama3":
        fields |= {
            "low_freq": float(values["low_freq_factor"]),
            "high_freq": float(values["high_freq_factor"]),
        }
    if kind in ("llama3", "longrope"):
        fields |= {"context": int(values["original_max_position_embeddings"])}
    if kind == "longrope":
        fields |= {
            "short": tuple(map(float, values["short_factor"])),
            "long": tuple(map(float, values["long_factor"])),
            "attention_factor": _attention_factor(config, values),
        }
    return Rope(**fields)


def write_rope(rope: Rope | None, spec: ModelConfig) -> dict[str, Any]:
    """Returns the entries that `read_rope` reads, for one of a model's embeddings."""
    if rope is None:
        return {}
    values: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.dim:
        values |= {"partial_rotary_factor": rope.dim / spec.head_dim}
    if rope.kind in ("linear", "llama3"):
        values |= {"factor": rope.factor}
    if rope.kind == "llama3":
        values |= {"low_freq_factor": rope.low_freq, "high_freq_factor": rope.high_freq}
    if rope.kind in ("llama3", "longrope"):
        values |= {"original_max_position_embeddings": rope.context}
    if rope.kind == "longrope":
        values |= {
            "short_factor": list(rope.short),
            "long_factor": list(rope.long),
            "factor": max(1.0, spec.context / rope.context),
            "attention_factor": rope.attention_factor,
        }
    return values


def _attention_factor(config: Any, values: dict[str, Any]) -> float:
    """Returns `sqrt(1 + log(stretch) / log(context))` of LongRoPE, unless the config has it."""
    if values.get("attention_factor") is not None:
        return float(values["attention_factor"])
    context = values["original_max_position_embeddings"]
    stretch = values.get("factor") or config.max_position_embeddings / context
    return math.sqrt(1 + math.log(stretch) / math.log(context)) if stretch > 1.0 else 1.0
