"""A text that is being generated: what its model has computed so far, and how it goes on."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.models._context import context, place
from jaxdiff.models._forward import World
from jaxdiff.models._lm import LM, stacked
from jaxdiff.models._run import forward
from jaxdiff.models._sampling import Sampling, choose
from jaxdiff.models._tap import Edit, Tap
from jaxdiff.models.attention import Cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Rows of a batch, each with one token that is chosen and not yet run.

    Attributes:
        cache: Keys and values, at S columns.
        sequences: 0 at columns that hold a token of the row, -1 at others.
        positions: Position of each column's token in its text [tokens].
        column: The next column.
        pending: The token that is run next.
        lengths: Tokens of the row that have been run; the position of `pending` [tokens].
        limits: Tokens that the row can have at most [tokens].
        done: Whether `pending` has ended the row.
        step: Tokens that have been chosen since the last text that was given.
        sampling: How tokens are chosen.
    """

    cache: Any
    sequences: Int[Array, "B S"]
    positions: Int[Array, "B S"]
    column: Int[Array, ""]
    pending: Int[Array, " B"]
    lengths: Int[Array, " B"]
    limits: Int[Array, " B"]
    done: Bool[Array, " B"]
    step: Int[Array, ""]
    sampling: Sampling

    @property
    def capacity(self) -> int:
        """Columns [tokens]."""
        return self.sequences.shape[1]


@dataclass(frozen=True)
class Asked:
    """What is asked of each step."""

    edits: tuple[Edit, ...]
    taps: tuple[Tap, ...]
    skipped: frozenset[int]


def empty(lm: LM, mask: Bool[Array, "B T"], sampling: Sampling, capacity: int) -> State:
    """Returns the state before the first text, which has tokens where the mask says."""
    rows, columns = mask.shape
    spec, dtype = lm.spec, lm.params["embedding"].dtype
    shape = (rows, spec.n_kv_heads, capacity, spec.head_dim)

    def cache(*layers: int) -> Cache:
        return Cache(*(jnp.zeros((*layers, *shape), dtype) for _ in range(2)))

    zeros = jnp.zeros(rows, jnp.int32)
    return State(
        cache=cache(spec.n_layers) if stacked(lm) else tuple(cache() for _ in range(spec.n_layers)),
        sequences=jnp.full((rows, capacity), -1, jnp.int32),
        positions=jnp.zeros((rows, capacity), jnp.int32),
        column=jnp.int32(0),
        pending=zeros,
        lengths=zeros,
        limits=jnp.sum(mask, axis=1, dtype=jnp.int32) + (capacity - columns),
        done=jnp.zeros(rows, bool),
        step=jnp.int32(0),
        sampling=sampling,
    )


def advance(
    lm: LM,
    state: State,
    tokens: Int[Array, "B T"],
    real: Bool[Array, "B T"],
    asked: Asked,
) -> tuple[State, Float[Array, " B"], dict[str, Any]]:
    """Runs tokens and chooses the next one of each row that has not ended.

    Returns:
        The new state, the log-probabilities of the chosen tokens, and what was tapped.
    """
    real = jnp.asarray(real)
    sequences = jnp.where(real, 0, -1)
    counted = jnp.cumsum(real, axis=1, dtype=jnp.int32)
    positions = jnp.maximum(state.lengths[:, None] + counted - 1, 0)
    start = (0, state.column)
    all_sequences = jax.lax.dynamic_update_slice(state.sequences, sequences, start)
    all_positions = jax.lax.dynamic_update_slice(state.positions, positions, start)
    read = context(
        lm.spec,
        positions,
        sequences,
        lengths=state.limits,
        key_sequences=all_sequences,
        start=state.column,
    )
    world = World(
        lm=lm,
        # Padding between the tokens of a row is no part of its windows.
        context=read._replace(positions=positions, key_positions=all_positions),
        at=place(positions, sequences, state.step),
        edits=asked.edits,
        taps=asked.taps,
        skipped=asked.skipped,
        cache=state.cache,
    )
    logits, kept, caches = forward((world,), (tokens,), logits="last", length=state.capacity)
    assert logits[0] is not None
    lengths = state.lengths + counted[:, -1]
    chosen, log_probs = choose(state.sampling, logits[0], lengths)
    ends = jnp.any(chosen[:, None] == state.sampling.stop[None, :], axis=1)
    new = replace(
        state,
        cache=caches[0],
        sequences=all_sequences,
        positions=all_positions,
        column=state.column + tokens.shape[1],
        pending=jnp.where(state.done, state.pending, chosen),
        lengths=lengths,
        done=state.done | ends,
        step=state.step + 1,
    )
    return new, jnp.where(state.done, 0.0, log_probs), kept.worlds[0]
