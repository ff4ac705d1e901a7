"""Shapes and records that every part of jaxdiff shares; no logic.

Shape letters, here and in every signature: B batch of tokens or sequences, T positions, R rows
(one row is one token seen by all models), M models (0 base, 1 fine-tuned), D model width,
L latents, V vocabulary, N layers.
"""

import enum
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

# A leaf is a NumPy array on the host side of a pipeline and a jax.Array inside a program.
HostOrDevice = Array | np.ndarray

BASE, FT = 0, 1


class Role(enum.IntEnum):
    """Who a token belongs to."""

    TEXT = 0
    TEMPLATE = 1
    SYSTEM = 2
    USER = 3
    ASSISTANT = 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenBatch:
    """Rows of token ids of one fixed shape, with what is known about each token.

    Attributes:
        tokens: Token ids; 0 where `sequences` is -1.
        roles: `Role` of each token.
        sequences: Index of the document that the token belongs to, unique in the corpus; -1 is
            padding. Tokens attend only to earlier tokens of the same document.
        positions: Position inside the document, in tokens from its first token.
        labels: Planted behaviour that is active at the token; 0 is none.
    """

    tokens: Int[HostOrDevice, "B T"]
    roles: Int[HostOrDevice, "B T"]
    sequences: Int[HostOrDevice, "B T"]
    positions: Int[HostOrDevice, "B T"]
    labels: Int[HostOrDevice, "B T"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ActivationBatch:
    """Activations of M models at one site for R tokens, with what is known about each token.

    Attributes:
        x: Activations.
        tokens: Token ids.
        roles: `Role` of each token.
        sequences: Index of the document.
        positions: Position inside the document, in tokens.
        labels: Planted behaviour; 0 is none.
        mask: True where the row may be used; False for BOS, skipped and outlier-norm positions.
    """

    x: Float[HostOrDevice, "R M D"]
    tokens: Int[HostOrDevice, " R"]
    roles: Int[HostOrDevice, " R"]
    sequences: Int[HostOrDevice, " R"]
    positions: Int[HostOrDevice, " R"]
    labels: Int[HostOrDevice, " R"]
    mask: Bool[HostOrDevice, " R"]


__all__ = [
    "BASE",
    "FT",
    "ActivationBatch",
    "Array",
    "Bool",
    "Float",
    "HostOrDevice",
    "Int",
    "Role",
    "Shaped",
    "TokenBatch",
]
