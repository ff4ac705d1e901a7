"""What generation returns, and the two ways in which a text grows: by what is given, by itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._check import Checked, checked
from jaxdiff.models._layout import buffers, laid_out, put, token_axes
from jaxdiff.models._lm import LM
from jaxdiff.models._state import Asked, State, advance
from jaxdiff.models._tap import Edit, Tap
from jaxdiff.types import HostOrDevice


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Generation:
    """Texts, and what was read while they were generated.

    `run(lm, tokens, sequences=sequences, positions=positions)` reads the same texts at once.

    Attributes:
        tokens: The prompts, and what follows; the model's pad token (or 0) after a row has ended.
        sequences: 0 at tokens of the texts, -1 at padding.
        positions: Position of each token in its text [tokens].
        log_probs: Log-probability of each generated token under the edited model itself: at
            temperature 1, among all tokens; 0 after a row has ended.
        taps: By name what was read, as `generate` says.
        start: Column of the first token that was generated.
    """

    tokens: Int[Array, "B S"]
    sequences: Int[Array, "B S"]
    positions: Int[Array, "B S"]
    log_probs: Float[Array, "B steps"]
    taps: dict[str, Any]
    start: int = field(metadata={"static": True})

    @property
    def generated(self) -> Int[Array, "B steps"]:
        """The tokens that were generated."""
        return self.tokens[:, self.start :]

    @property
    def lengths(self) -> Int[Array, " B"]:
        """How many tokens of each row were generated, with the one that ended it [tokens]."""
        return jnp.sum(self.sequences[:, self.start :] >= 0, axis=1)


def asked_of(
    lm: LM, taps: Sequence[str | Tap], edits: Sequence[Edit], rows: int, columns: int
) -> Checked:
    """Returns what is asked of every step, by canonical names."""
    texts = np.broadcast_to(np.int32(0), (rows, columns))
    found = checked(lm, taps, edits, texts)
    for tap in found.taps:
        if tap.offload:
            raise JaxdiffError(
                "what is read at each step of a generation stays on the device",
                where=tap.site,
                fix="leave offload out, and keep less: dtype='bfloat16', or a reducer",
            )
    return found


def given(
    lm: LM, state: State, tokens: HostOrDevice, mask: HostOrDevice, asked: Asked
) -> tuple[State, Generation]:
    """Runs a text that was given."""
    tokens, mask = jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)
    pad = lm.spec.pad or 0
    # What is run at padding must be in the vocabulary, which a pad token need not be.
    new, log_probs, found = advance(lm, state, jnp.where(mask, tokens, 0), mask, asked)
    columns = (state.column, tokens.shape[1])
    positions = jax.lax.dynamic_slice_in_dim(new.positions, *columns, axis=1)
    piece = Generation(
        tokens=jnp.concatenate([jnp.where(mask, tokens, pad), new.pending[:, None]], axis=1),
        sequences=jnp.pad(jnp.where(mask, 0, -1), ((0, 0), (0, 1))),
        positions=jnp.concatenate([positions, new.lengths[:, None]], axis=1),
        log_probs=log_probs[:, None],
        taps=laid_out(token_axes(lm.spec, asked.taps, len(tokens)), found),
        start=tokens.shape[1],
    )
    return new, piece


def generated(lm: LM, state: State, asked: Asked, steps: int) -> tuple[State, Generation]:
    """Runs the tokens that were generated, one after the other."""
    rows, pad = len(state.pending), lm.spec.pad or 0
    axes = token_axes(lm.spec, asked.taps, rows)

    def step(state: State) -> tuple[State, Array, dict[str, Any]]:
        active = ~state.done[:, None]
        tokens = jnp.where(active, state.pending[:, None], 0)
        new, log_probs, found = advance(lm, state, tokens, active, asked)
        return new, log_probs, laid_out(axes, found)

    taps = buffers(axes, jax.eval_shape(lambda: step(state)[2]), steps) if axes else {}
    piece = Generation(
        tokens=jnp.full((rows, steps), pad, jnp.int32),
        sequences=jnp.full((rows, steps), -1, jnp.int32),
        positions=jnp.zeros((rows, steps), jnp.int32),
        log_probs=jnp.zeros((rows, steps), jnp.float32),
        taps=taps,
        start=0,
    )

    def more(carry: tuple[Array, State, Generation]) -> Array:
        i, state, _ = carry
        return (i < steps) & ~jnp.all(state.done)

    def body(carry: tuple[Array, State, Generation]) -> tuple[Array, State, Generation]:
        i, state, piece = carry
        new, log_probs, found = step(state)

        def write(name: str, values: Array) -> Array:
            return jax.lax.dynamic_update_slice(getattr(piece, name), values[:, None], (0, i))

        piece = replace(
            piece,
            tokens=write("tokens", jnp.where(state.done, pad, new.pending)),
            sequences=write("sequences", jnp.where(state.done, -1, 0)),
            positions=write("positions", new.lengths),
            log_probs=write("log_probs", log_probs),
            taps=put(axes, piece.taps, found, i),
        )
        return i + 1, new, piece

    _, state, piece = jax.lax.while_loop(more, body, (jnp.int32(0), state, piece))
    return state, piece
