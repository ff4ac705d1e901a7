"""A sum over the parts of a model, each under its name."""

import fnmatch
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Parts:
    """Parts of the final residual stream, or what each of them adds to a logit.

    `parts["blocks.*.mlp_out"]` has the parts whose names match a glob.

    Attributes:
        values: `[P, B, T, D]` or `[P, B, T]`, float32; without T where one position was asked for.
        names: Name of each of the P parts: sites that add to the stream, `blocks.3.attn.z.5` for a
            head, `blocks.3.attn.bias` for what the attention adds besides its heads,
            `final_norm.bias`, and `edits` for what edits of the stream itself added.
    """

    values: Any
    names: tuple[str, ...] = field(metadata={"static": True})

    @property
    def total(self) -> Array:
        """The sum of all parts."""
        return jnp.sum(self.values, axis=0)

    def accumulated(self) -> "Parts":
        """Returns, for each part, the sum of the parts up to it, in the order of computation."""
        return replace(self, values=jnp.cumsum(self.values, axis=0))

    def __getitem__(self, pattern: str) -> Array:
        """Returns the values of the parts whose names match a glob, in their order.

        Raises:
            JaxdiffError: If there is none.
        """
        found = [i for i, name in enumerate(self.names) if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise JaxdiffError(
                f"no part matches {pattern!r}",
                where="parts",
                fix=f"parts are {', '.join(self.names[:8])}, ...",
            )
        return self.values[jnp.asarray(found)]


def names_of(spec: ModelConfig, *, heads: bool) -> tuple[str, ...]:
    """Returns the names of what is added to the stream, in the order of computation."""
    names = ["embed"] if spec.rope else ["embed", "pos_embed"]
    for i in range(spec.n_layers):
        if heads:
            names += [f"blocks.{i}.attn.z.{head}" for head in range(spec.n_heads)]
            names += [f"blocks.{i}.attn.bias"] * has_bias(spec)
        else:
            names.append(f"blocks.{i}.attn_out")
        names.append(f"blocks.{i}.mlp_out")
    return tuple(names)


def has_bias(spec: ModelConfig) -> bool:
    """Returns whether the attention adds something that no head does."""
    return bool(spec.attention_out_bias) or (spec.post_norms and spec.norm == "layer")
