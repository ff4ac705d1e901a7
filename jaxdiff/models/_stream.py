"""Generation piece by piece: for streams, and for chats that go on."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._generation import Generation, asked_of, generated, given
from jaxdiff.models._lm import LM, stacked
from jaxdiff.models._prompts import (
    Prompts,
    check_length,
    check_steps,
    on_host,
    prompt_arrays,
    sampling_of,
)
from jaxdiff.models._state import Asked, State, empty
from jaxdiff.models._tap import Edit, Tap
from jaxdiff.models._traces import traced
from jaxdiff.types import HostOrDevice


def prefill(
    lm: LM,
    prompts: Prompts,
    capacity: int,
    *,
    mask: HostOrDevice | None = None,
    edits: Sequence[Edit] = (),
    taps: Sequence[str | Tap] = (),
    temperature: Any = 0.0,
    top_k: int | None = None,
    top_p: Any = None,
    key: Any = None,
    stop: Sequence[int] | None = None,
) -> tuple[State, Generation]:
    """Runs prompts and chooses the first token: what a stream or a chat begins with.

        state, piece = prefill(lm, prompts, capacity=256)
        state, piece = decode(lm, state, 8)              # as often as there is room
        state, piece = extend(lm, state, answers)        # the other side of a chat

    Args:
        lm: The model.
        prompts: As in `generate`.
        capacity: Columns of the cache: tokens that the longest row may have, with padding [tokens].
            The rotations of a longrope model are those of a text of that length.
        mask: As in `generate`.
        edits: As in `generate`.
        taps: As in `generate`.
        temperature: As in `generate`; it holds for the steps to come, too.
        top_k: As temperature.
        top_p: As temperature.
        key: As temperature.
        stop: As temperature.

    Returns:
        The state, and the prompts with one more token.

    Raises:
        JaxdiffError: As `generate` does, and if the prompts do not fit the capacity.
    """
    tokens, mask = prompt_arrays(lm.spec, prompts, mask)
    check_length(lm.spec, mask, 0)
    _check_room(0, tokens.shape[1], capacity)
    sampling = sampling_of(lm.spec, temperature, top_k, top_p, key, stop)
    asked = asked_of(lm, taps, edits, tokens.shape[0], capacity)
    return _prefill(
        asked.lm,
        tokens,
        mask,
        sampling,
        asked.edits,
        asked.taps,
        capacity=capacity,
        skipped=asked.skipped,
    )


def decode(
    lm: LM,
    state: State,
    steps: int,
    *,
    edits: Sequence[Edit] = (),
    taps: Sequence[str | Tap] = (),
) -> tuple[State, Generation]:
    """Goes on with texts by some tokens; the pieces together are what `generate` returns.

    Args:
        lm: The model.
        state: Where the texts are. It is used up: its memory becomes that of the new state.
        steps: Tokens to generate.
        edits: As in `generate`.
        taps: As in `generate`; a step reads the token that was chosen by the step before it.

    Returns:
        The new state, and the new tokens `[B, steps]`.

    Raises:
        JaxdiffError: If there is no room for so many tokens, or `run` would refuse a tap or an
            edit.
    """
    check_steps(steps)
    _check_state(lm, state, np.zeros((len(state.pending), 0), bool), steps)
    asked = asked_of(lm, taps, edits, *state.sequences.shape)
    return _decode(asked.lm, state, asked.edits, asked.taps, steps=steps, skipped=asked.skipped)


def extend(
    lm: LM,
    state: State,
    texts: Prompts,
    *,
    mask: HostOrDevice | None = None,
    edits: Sequence[Edit] = (),
    taps: Sequence[str | Tap] = (),
) -> tuple[State, Generation]:
    """Appends a text to each row, also to rows that have ended, and chooses the token after it.

    The last generated token is run together with the text, as one more step 0; steps count from it.
    The result is that of `prefill` on the whole chat.

    Args:
        lm: The model.
        state: Where the texts are. It is used up.
        texts: Token ids, as the prompts of `generate`; rows may be empty.
        mask: As in `generate`.
        edits: As in `generate`.
        taps: As in `generate`.

    Returns:
        The new state, and the last generated token, the texts and one more token.

    Raises:
        JaxdiffError: If there is no room for so many tokens, a token is unknown, or `run` would
            refuse a tap or an edit.
    """
    tokens, mask = prompt_arrays(lm.spec, texts, mask, empty=True)
    if len(tokens) != len(state.pending):
        raise JaxdiffError(
            f"{len(tokens)} texts for {len(state.pending)} rows",
            where="texts",
            fix="give each row one; it may be empty",
        )
    # The last generated token is run as well.
    _check_state(lm, state, mask, 1)
    asked = asked_of(lm, taps, edits, *state.sequences.shape)
    return _extend(asked.lm, state, tokens, mask, asked.edits, asked.taps, skipped=asked.skipped)


@functools.partial(jax.jit, static_argnames=("capacity", "skipped"))
@traced("prefill")
def _prefill(lm, tokens, mask, sampling, edits, taps, *, capacity, skipped):
    state = empty(lm, mask, sampling, capacity)
    return given(lm, state, tokens, mask, Asked(edits, taps, skipped))


@functools.partial(jax.jit, static_argnames=("steps", "skipped"), donate_argnames="state")
@traced("decode")
def _decode(lm, state, edits, taps, *, steps, skipped):
    return generated(lm, state, Asked(edits, taps, skipped), steps)


@functools.partial(jax.jit, static_argnames="skipped", donate_argnames="state")
@traced("extend")
def _extend(lm, state, tokens, mask, edits, taps, *, skipped):
    tokens = jnp.concatenate([state.pending[:, None], jnp.asarray(tokens, jnp.int32)], axis=1)
    mask = jnp.concatenate([jnp.ones((len(mask), 1), bool), jnp.asarray(mask)], axis=1)
    state = replace(state, done=jnp.zeros_like(state.done), step=jnp.zeros_like(state.step))
    return given(lm, state, tokens, mask, Asked(edits, taps, skipped))


def _check_state(lm: LM, state: State, mask: HostOrDevice, more: int) -> None:
    """Refuses a used or another model's state, and a text and more tokens without room."""
    if not isinstance(state.column, jax.core.Tracer) and state.column.is_deleted():
        raise JaxdiffError(
            "this state is used up: its memory went to the one that came after it",
            where="state",
            fix="go on with the state that decode or extend returned",
        )
    rows, shape = state.sequences.shape[0], (lm.spec.n_kv_heads, state.capacity, lm.spec.head_dim)
    n, leaves = lm.spec.n_layers, jax.tree.leaves(state.cache)
    each = {(n, rows, *shape)} if stacked(lm) else {(rows, *shape)}
    if len(leaves) != (2 if stacked(lm) else 2 * n) or {leaf.shape for leaf in leaves} != each:
        raise JaxdiffError(
            "this state was made by a model of another shape, or another layout of its weights",
            where="state",
            fix="go on with the model that prefill had; `stack` and `unstack` change the layout",
        )
    column, lengths = on_host(state.column), on_host(state.lengths)
    if column is None or lengths is None:
        return
    _check_room(int(column), mask.shape[1] + more, state.capacity)
    done = on_host(state.done)
    if mask.shape[1] == 0 and done is not None:
        # Rows that have ended are not gone on with.
        lengths = np.where(done, 0, lengths)
    check_length(lm.spec, mask, more, before=lengths)


def _check_room(used: int, more: int, capacity: int) -> None:
    if used + more > capacity:
        raise JaxdiffError(
            f"{used} columns are used, and {more} more do not fit a capacity of {capacity}",
            where="capacity",
            fix="give prefill a larger capacity",
        )
