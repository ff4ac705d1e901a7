"""config.json to what a model is made of, through the configs of transformers."""

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._files import CONFIG, read_json
from jaxdiff.models.architecture import Architecture
from jaxdiff.models.registry import architecture
from jaxdiff.models.spec import ModelConfig

CHANGES = "jaxdiff_changes"
"""Entry of a config.json that says what was done to the weights, as `LM.changes` does."""


def changes_of(folder: Path) -> tuple[str, ...]:
    """Reads what was done to the weights of a model before they were saved.

    Raises:
        JaxdiffError: If the entry of config.json is no list of strings.
    """
    found = read_json(folder / CONFIG).get(CHANGES, [])
    if not isinstance(found, list) or not all(isinstance(line, str) for line in found):
        raise JaxdiffError(
            f"{CHANGES} is {found!r}, no list of strings",
            where=folder / CONFIG,
            fix="`models.save` writes it; without it nothing was changed",
        )
    return tuple(found)


def read_spec(folder: Path) -> ModelConfig:
    """Reads what a model is made of from its config.json.

    Raises:
        JaxdiffError: If there is no config.json, or it asks for what jaxdiff does not have.
    """
    values = read_json(folder / CONFIG)
    family = architecture(values.get("model_type"), where=folder / CONFIG)
    if values.get("quantization_config"):
        raise JaxdiffError(
            "quantised weights are not supported",
            where=folder / CONFIG,
            fix="use the float32 or bfloat16 version of the model",
        )
    return _spec(family, values, where=folder / CONFIG)


def check_config(
    spec: ModelConfig, family: Architecture, config: dict[str, Any], *, where: str | Path
) -> None:
    """Refuses a model that its family's config.json cannot describe.

    Args:
        spec: The model.
        family: Its family.
        config: What would be written.
        where: Directory to write to.

    Raises:
        JaxdiffError: If a model made of `config` would not be `spec`.
    """
    again = _spec(family, config, where=Path(where) / CONFIG)
    lost = [
        f"{field.name}={getattr(spec, field.name)!r}"
        for field in dataclasses.fields(ModelConfig)
        if getattr(spec, field.name) != getattr(again, field.name)
    ]
    if lost:
        raise JaxdiffError(
            f"a config.json of {family.model_type} cannot say {', '.join(lost)}",
            where=where,
            fix="choose the architecture that has what the model has",
        )


def _spec(family: Architecture, values: dict[str, Any], *, where: Path) -> ModelConfig:
    """Makes a `ModelConfig` of the entries of a config.json."""
    try:
        return family.spec(_transformers_config(values))
    except JaxdiffError as error:
        raise JaxdiffError(error.what, where=where, fix=error.fix) from None
    except Exception as error:  # transformers' checks have no common base class
        raise JaxdiffError(
            f"this config is not valid: {error}", where=where, fix="correct it"
        ) from error


def _transformers_config(values: dict[str, Any]) -> Any:
    # transformers announces at import that torch is absent, which nobody here needs to know.
    quiet = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(quiet)
    os.environ[quiet] = "1"
    try:
        from transformers import AutoConfig
    finally:
        os.environ.pop(quiet) if before is None else os.environ.update({quiet: before})
    # from_dict changes what it is given.
    return type(AutoConfig.for_model(values["model_type"])).from_dict(copy.deepcopy(values))
