"""Fraction of variance explained by a dictionary, per model and pooled."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.stats import compensated
from jaxdiff.stats.compensated import Sum
from jaxdiff.stats.encoded import Encoded


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VarianceState:
    """Running sums over rows.

    Attributes:
        rows: Rows that counted.
        total: Sum of x.
        energy: Sum of |x|^2.
        error: Sum of |x - xhat|^2.
    """

    rows: Int[Array, ""]
    total: Sum
    energy: Sum
    error: Sum


@dataclass(frozen=True)
class Fve:
    """Fraction of variance explained: 1 - sum |x - xhat|^2 / sum |x - mean|^2.

    Attributes:
        models: Of each model; NaN where a model's activations are constant.
        all: Of all models together, in the dictionary's space.
    """

    models: Float[np.ndarray, " M"]
    all: float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Variance:
    """Statistic: FVE of `models` models of width `width`."""

    models: int = field(metadata={"static": True})
    width: int = field(metadata={"static": True})

    def init(self) -> VarianceState:
        """Returns empty sums."""
        return VarianceState(
            rows=jnp.int32(0),
            total=compensated.zero(self.models, self.width),
            energy=compensated.zero(self.models),
            error=compensated.zero(self.models),
        )

    def update(self, state: VarianceState, batch: Encoded) -> VarianceState:
        """Adds a batch."""
        energy = lambda y: jnp.square(y).sum(axis=(0, 2))  # noqa: E731
        return VarianceState(
            rows=state.rows + batch.mask.sum(dtype=jnp.int32),
            total=compensated.add(state.total, batch.x.sum(axis=0)),
            energy=compensated.add(state.energy, energy(batch.x)),
            error=compensated.add(state.error, energy(batch.x - batch.reconstruction)),
        )

    def merge(self, a: VarianceState, b: VarianceState) -> VarianceState:
        """Joins two shards of the rows."""
        return VarianceState(
            rows=a.rows + b.rows,
            total=compensated.merge(a.total, b.total),
            energy=compensated.merge(a.energy, b.energy),
            error=compensated.merge(a.error, b.error),
        )

    def finalize(self, state: VarianceState) -> Fve:
        """Divides the sums, in float64."""
        rows = max(int(state.rows), 1)
        total = compensated.value(state.total)
        variance = compensated.value(state.energy) - (total * total).sum(axis=1) / rows
        error = compensated.value(state.error)
        explained = lambda e, v: 1 - e / np.where(v > 0, v, np.nan)  # noqa: E731
        return Fve(explained(error, variance), float(explained(error.sum(), variance.sum())))
