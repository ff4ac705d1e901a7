"""The rows on which each latent fires most strongly, at most one of each sequence."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.stats.encoded import Encoded


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StrongestState:
    """The best so far, strongest first, the earlier row first among equals.

    Attributes:
        values: Scaled values; 0 is an empty place.
        rows: Rows of the pass; -1 is an empty place.
        sequences: Documents of these rows.
    """

    values: Float[Array, "L k"]
    rows: Int[Array, "L k"]
    sequences: Int[Array, "L k"]


@dataclass(frozen=True)
class StrongestRows:
    """`StrongestState` on the host."""

    values: Float[np.ndarray, "L k"]
    rows: Int[np.ndarray, "L k"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Strongest:
    """Statistic: the `keep` strongest rows of each of `latents` latents."""

    latents: int = field(metadata={"static": True})
    keep: int = field(metadata={"static": True})

    def init(self) -> StrongestState:
        """Returns empty places."""
        shape = (self.latents, self.keep)
        empty = jnp.full(shape, -1, jnp.int32)
        return StrongestState(jnp.zeros(shape, jnp.float32), empty, empty)

    def update(self, state: StrongestState, batch: Encoded) -> StrongestState:
        """Adds a batch.

        Each turn of the loop takes every latent's strongest row and rules its sequence out, for as
        long as some latent has a row better than its worst place: `keep` turns at most, and few
        once the places hold strong rows. Nothing of size R x L is sorted.
        """
        sequences = batch.sequences.astype(jnp.int32)
        places = jnp.arange(len(sequences), dtype=jnp.int32)[:, None]

        def better(carry):
            best, left = carry
            return (left.max(axis=0) > best.values[:, -1]).any()

        def take(carry):
            best, left = carry
            values = left.max(axis=0)
            # The first row with that value; on CPU this is ten times as fast as argmax.
            at = jnp.where(left == values[None], places, len(places)).min(axis=0)
            found = StrongestState(values[:, None], batch.rows[at][:, None], sequences[at][:, None])
            left = jnp.where(sequences[:, None] == sequences[at][None], jnp.float32(0), left)
            return self.merge(best, found), left

        if self.keep == 0:
            return state
        return jax.lax.while_loop(better, take, (state, batch.v))[0]

    def merge(self, a: StrongestState, b: StrongestState) -> StrongestState:
        """Keeps the best of two shards of the rows."""
        join = lambda x, y: jnp.concatenate([x, y], axis=1)  # noqa: E731
        values, rows = join(a.values, b.values), join(a.rows, b.rows)
        sequences = join(a.sequences, b.sequences)
        ahead = values[:, None, :] > values[:, :, None]
        ahead |= (values[:, None, :] == values[:, :, None]) & (rows[:, None, :] < rows[:, :, None])
        again = ahead & (sequences[:, None, :] == sequences[:, :, None])
        values = jnp.where(again.any(axis=2), jnp.float32(0), values)
        empty = values <= 0
        order = (-values, jnp.where(empty, jnp.iinfo(jnp.int32).max, rows), sequences)
        values, rows, sequences = jax.lax.sort(order, dimension=1, num_keys=2)
        values = -values[:, : self.keep]
        keep = values > 0
        blank = lambda x: jnp.where(keep, x[:, : self.keep], jnp.int32(-1))  # noqa: E731
        return StrongestState(values, blank(rows), blank(sequences))

    def finalize(self, state: StrongestState) -> StrongestRows:
        """Brings values and rows to the host."""
        return StrongestRows(np.asarray(state.values, np.float64), np.asarray(state.rows))
