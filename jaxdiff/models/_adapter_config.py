"""Settings of a PEFT adapter directory: which modules it changes, and how strongly."""

import re
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._files import ADAPTER_CONFIG, read_json

# Other starts change the base's own weights, which the adapter's files do not have.
_Start = Literal["gaussian", "eva", "orthogonal", "mica"] | bool | None

# Entries that say how the adapter was trained, or where it came from.
_HISTORY = {
    *("auto_mapping", "base_model_name_or_path", "eva_config", "inference_mode", "lora_dropout"),
    *("megatron_core", "peft_version", "qalora_group_size", "revision", "task_type"),
    # It decides which tensors there are, and those are read as they are.
    "ensure_weight_tying",
    # A joined or transposed matrix is known by the architecture.
    "fan_in_fan_out",
}


class AdapterConfig(pydantic.BaseModel):
    """What adapter_config.json says about the change, with PEFT's names.

    Modules are named as in the files of a model (`model.layers.3.self_attn.q_proj`). A pattern is a
    regular expression that matches the end of such a name, from a dot on; the first one counts.

    Attributes:
        peft_type: Kind of the adapter.
        r: Rank of each update.
        lora_alpha: Strength of each update.
        rank_pattern: Other ranks, by pattern.
        alpha_pattern: Other strengths, by pattern.
        use_rslora: Updates are scaled by `alpha / sqrt(rank)` (arXiv:2312.03732) instead of
            `alpha / rank`.
        target_modules: Names or ends of names of the modules that are updated; or one regular
            expression.
        exclude_modules: The same of modules that are not updated all the same.
        layers_to_transform: Layers that are updated; all when None.
        layers_pattern: What the number of the layer follows in a name.
        modules_to_save: Ends of names of modules that are replaced.
        bias: Which biases are replaced.
        init_lora_weights: How the training began.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    peft_type: Literal["LORA"]
    r: int = Field(ge=1)
    lora_alpha: float
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: _Start = True

    def rank(self, module: str) -> int:
        """Returns the rank of a module's update."""
        return _first(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """Returns what a module's update is multiplied by."""
        rank = self.rank(module)
        alpha = _first(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (rank**0.5 if self.use_rslora else rank)

    @property
    def targeted(self) -> bool:
        """Whether the config says at all which modules are updated."""
        return self.target_modules not in (None, "all-linear")

    def updates(self, module: str) -> bool:
        """Returns whether a module is said to get a low-rank update."""
        names = self.target_modules
        whole = any(re.match(rf"(.*\.)?{m}(\..*)?$", module) for m in self.modules_to_save or [])
        if not self.targeted or whole or _named(self.exclude_modules, module):
            return False
        chosen = isinstance(names, str) or module in (names or []) or self._has_layer(module)
        return chosen and _named(names, module)

    def replaces(self, module: str) -> bool:
        """Returns whether a module, or one that it is part of, is said to be replaced."""
        return any(re.search(rf"{re.escape(m)}(\.|$)", module) for m in self.modules_to_save or [])

    def replaces_bias(self, module: str) -> bool:
        """Returns whether a module's bias is said to be replaced."""
        return self.bias == "all" or (self.bias == "lora_only" and self.updates(module))

    def _has_layer(self, module: str) -> bool:
        wanted = self.layers_to_transform
        if wanted is None or wanted == []:
            return True
        patterns = self.layers_pattern or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            # The first number is the layer; a later one is an expert.
            if found := re.match(rf"(?:.*?\.)??{pattern}\.(\d+)\.", module):
                return int(found[1]) in ([wanted] if isinstance(wanted, int) else wanted)
        return False


def read_config(folder: Path) -> AdapterConfig:
    """Reads adapter_config.json.

    Raises:
        JaxdiffError: If it is missing, wrong, or asks for what jaxdiff does not have; the message
            lists all of it.
    """
    values = read_json(folder / ADAPTER_CONFIG)
    known = AdapterConfig.model_fields
    # What is off, empty or history asks for nothing.
    asked = {k: v for k, v in values.items() if k in known or (v and k not in _HISTORY)}
    asked = {k: v for k, v in asked.items() if v is not None}
    try:
        return AdapterConfig.model_validate(asked)
    except pydantic.ValidationError as error:
        problems = {_explain(e): None for e in error.errors()}
        raise JaxdiffError(
            "this adapter cannot be used:\n  " + "\n  ".join(problems),
            where=folder / ADAPTER_CONFIG,
            fix="merge it into its base with PEFT (merge_and_unload), save that model, and use it",
        ) from None


def _explain(error: Any) -> str:
    name, value = str(error["loc"][0]), error["input"]
    match name, error["type"]:
        case _, "missing":
            return f"{name} is missing"
        case _, "extra_forbidden":
            return f"{name}={value!r} is not supported"
        case "peft_type", _:
            return f"peft_type={value!r} is not supported; only LORA is"
        case "init_lora_weights", _:
            return f"{name}={value!r} is not supported: it changes the base's own weights too"
    return f"{'.'.join(map(str, error['loc']))}={value!r}: {error['msg']}"


def _first(patterns: dict[str, Any], module: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _named(names: list[str] | str | None, module: str) -> bool:
    if isinstance(names, str):
        return bool(re.fullmatch(names, module))
    return any(module == name or module.endswith(f".{name}") for name in names or [])
