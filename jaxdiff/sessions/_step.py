"""Steps and sessions as pytrees."""

from dataclasses import dataclass, field
from typing import Any

import jax

from jaxdiff.models._run import Logits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Step:
    """What `step` makes; `step` says what the fields are, and `check` that they are it."""

    name: str = field(metadata={"static": True})
    model: str = field(metadata={"static": True})
    tokens: Any
    taps: Any = ()
    edits: Any = ()
    sequences: Any = None
    positions: Any = None
    logits: Logits = field(default=False, metadata={"static": True})

    @property
    def makes(self) -> tuple[str, ...]:
        """Names of what later steps may use."""
        return (*(tap.name or tap.site for tap in self.taps), *("logits",) * bool(self.logits))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Session:
    """What `session` makes.

    Attributes:
        steps: `Step`s in the order in which they are computed.
        keep: What is returned: a tuple of `Captured` and the like.
    """

    steps: Any
    keep: Any
