"""How often, how strongly and on whose tokens each latent fires."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.stats import compensated
from jaxdiff.stats.compensated import Sum
from jaxdiff.stats.encoded import Encoded
from jaxdiff.types import Role


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FiringState:
    """Counts are exact up to 2^31 tokens.

    Attributes:
        role_tokens: Rows of each role.
        role_counts: Rows of each role on which each latent fires.
        total: Sum of each latent's scaled value.
        largest: Largest scaled value.
    """

    role_tokens: Int[Array, " K"]
    role_counts: Int[Array, "K L"]
    total: Sum
    largest: Float[Array, " L"]


@dataclass(frozen=True)
class FiringResult:
    """Firing of each latent; values are scaled by the code norm.

    Attributes:
        tokens: Rows in all.
        l0: Latents that fire on a row, on average.
        counts: Rows on which each latent fires.
        frequency: Their share of all rows.
        mean: Mean value where the latent fires; 0 if it never does.
        max: Largest value.
        role_tokens: Rows of each role.
        role_l0: l0 on the rows of each role; NaN where there are none.
        role_share: Share of each role in the latent's firing; 0 if it never fires.
    """

    tokens: int
    l0: float
    counts: Int[np.ndarray, " L"]
    frequency: Float[np.ndarray, " L"]
    mean: Float[np.ndarray, " L"]
    max: Float[np.ndarray, " L"]
    role_tokens: Int[np.ndarray, " K"]
    role_l0: Float[np.ndarray, " K"]
    role_share: Float[np.ndarray, "K L"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Firing:
    """Statistic: firing of `latents` latents; a decoupled latent fires if it does in any model."""

    latents: int = field(metadata={"static": True})

    def init(self) -> FiringState:
        """Returns zero counts."""
        return FiringState(
            role_tokens=jnp.zeros(len(Role), jnp.int32),
            role_counts=jnp.zeros((len(Role), self.latents), jnp.int32),
            total=compensated.zero(self.latents),
            largest=jnp.zeros(self.latents, jnp.float32),
        )

    def update(self, state: FiringState, batch: Encoded) -> FiringState:
        """Adds a batch."""
        # One product of 0s and 1s: exact in float32, as a batch has far fewer than 2^24 rows.
        role = jnp.arange(len(Role), dtype=batch.roles.dtype)
        member = (batch.roles[None] == role[:, None]) & batch.mask[None]
        counts = jnp.matmul(
            member.astype(jnp.float32), (batch.v > 0).astype(jnp.float32), precision="highest"
        )
        return FiringState(
            role_tokens=state.role_tokens + member.sum(axis=1, dtype=jnp.int32),
            role_counts=state.role_counts + counts.astype(jnp.int32),
            total=compensated.add(state.total, batch.v.sum(axis=0)),
            largest=jnp.maximum(state.largest, batch.v.max(axis=0)),
        )

    def merge(self, a: FiringState, b: FiringState) -> FiringState:
        """Joins two shards of the rows."""
        return FiringState(
            role_tokens=a.role_tokens + b.role_tokens,
            role_counts=a.role_counts + b.role_counts,
            total=compensated.merge(a.total, b.total),
            largest=jnp.maximum(a.largest, b.largest),
        )

    def finalize(self, state: FiringState) -> FiringResult:
        """Divides the counts."""
        role_tokens = np.asarray(state.role_tokens, np.int64)
        role_counts = np.asarray(state.role_counts, np.int64)
        counts, tokens = role_counts.sum(axis=0), int(role_tokens.sum())
        fired = np.maximum(counts, 1)
        return FiringResult(
            tokens=tokens,
            l0=float(counts.sum() / max(tokens, 1)),
            counts=counts,
            frequency=counts / max(tokens, 1),
            mean=compensated.value(state.total) / fired,
            max=np.asarray(state.largest, np.float64),
            role_tokens=role_tokens,
            role_l0=role_counts.sum(axis=1) / np.where(role_tokens > 0, role_tokens, np.nan),
            role_share=role_counts / fired[None],
        )
