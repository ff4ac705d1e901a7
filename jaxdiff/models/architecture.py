"""What tells one family of models from another: its settings and the tensors in its files."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxdiff.errors import JaxdiffError
from jaxdiff.models.spec import Activation, ModelConfig


@dataclass(frozen=True)
class Row:
    """One tensor of a Hugging Face file, and the parameters of `LM.params` that it holds.

    Both directions are read off the same row: loading cuts the tensor and stacks layers and
    experts, saving takes them apart and joins the pieces. A parameter's matrix is `[out, in]`.

    Attributes:
        hf: Name in the file; `{i}` is the layer, `{e}` the expert.
        path: Keys in the nested dict, joined by dots. With several of them, their outputs follow
            one another in the file's tensor.
        transposed: The file's matrix is `[in, out]`.
        by_head: Of several parameters, the outputs of the first head come first, then those of the
            second head, and so on.
    """

    hf: str
    path: str | tuple[str, ...]
    transposed: bool = False
    by_head: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        """The parameters in the tensor, in the order of its outputs."""
        return (self.path,) if isinstance(self.path, str) else self.path


class Ignored(NamedTuple):
    """Tensors that a file may have and a load leaves out on purpose.

    Attributes:
        pattern: Regular expression that matches the whole name.
        why: What they are.
    """

    pattern: str
    why: str


ROTARY = Ignored(r".*rotary_emb\.inv_freq", "rotary frequencies, which follow from the config")


@dataclass(frozen=True)
class Architecture:
    """A family of models.

    Attributes:
        model_type: `model_type` in config.json.
        hf_class: Name of the class in transformers, written to config.json.
        about: Names of the models and where they are described.
        spec: Makes a `ModelConfig` of a transformers config; raises JaxdiffError on what it cannot.
        config: Makes the family's own entries of config.json from a `ModelConfig`.
        rows: Every tensor that a model of the family may have.
        ignored: Tensors that are none of the model's parameters.
        renamed: Regular expressions and what their match at the start of a name becomes, for files
            that name the same tensors in another way than `rows`.
    """

    model_type: str
    hf_class: str
    about: str
    spec: Callable[[Any], ModelConfig]
    config: Callable[[ModelConfig], dict[str, Any]]
    rows: tuple[Row, ...]
    ignored: tuple[Ignored, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()


_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


def activation(config: Any, name: str = "hidden_act") -> Activation:
    """Returns the nonlinearity that the entry `name` of a config asks for.

    Raises:
        JaxdiffError: If it is one that jaxdiff does not have.
    """
    require(config, name, *_ACTIVATIONS)
    return _ACTIVATIONS[getattr(config, name)]


def activation_name(kind: Activation) -> str:
    """Returns the name of a nonlinearity in config.json."""
    return "gelu_pytorch_tanh" if kind == "gelu_tanh" else kind


def require(config: Any, name: str, *allowed: Any) -> None:
    """Refuses a config whose entry `name` has a value that the decoder does not implement."""
    value = getattr(config, name, None)
    if value not in allowed:
        raise JaxdiffError(
            f"{config.model_type} with {name}={value!r} is not supported",
            where="config.json",
            fix=f"supported: {', '.join(map(repr, allowed))}",
        )


def token_ids(config: Any) -> dict[str, Any]:
    """Returns the special tokens as fields of `ModelConfig`."""
    bos, eos, pad = (getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad"))
    return {
        "bos": bos,
        "eos": () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
        "pad": pad,
    }


def token_entries(spec: ModelConfig) -> dict[str, Any]:
    """Returns the entries of config.json that `token_ids` reads."""
    eos = list(spec.eos)
    return {
        "bos_token_id": spec.bos,
        "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else eos,
        "pad_token_id": spec.pad,
    }
