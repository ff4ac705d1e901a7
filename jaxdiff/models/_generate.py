"""Generation with a cache: in one program, or piece by piece for streams and chats."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._check import checked
from jaxdiff.models._layout import buffers, joined, laid_out, put, token_axes
from jaxdiff.models._lm import LM
from jaxdiff.models._prompts import (
    Prompts,
    check_length,
    check_steps,
    on_host,
    prompt_arrays,
    sampling_of,
)
from jaxdiff.models._state import Asked, State, advance, empty
from jaxdiff.models._tap import Edit, Tap
from jaxdiff.models._traces import traced
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


def generate(
    lm: LM,
    prompts: Prompts,
    steps: int,
    *,
    mask: HostOrDevice | None = None,
    edits: Sequence[Edit] = (),
    taps: Sequence[str | Tap] = (),
    temperature: Any = 0.0,
    top_k: int | None = None,
    top_p: Any = None,
    key: Any = None,
    stop: Sequence[int] | None = None,
) -> Generation:
    """Generates text in one program: the prompts, and a loop that ends when all rows have ended.

    The program is compiled for a shape of the prompts, a number of steps, `top_k`, and a structure
    of edits and taps. Temperature, top_p, key, stop tokens' values and the leaves of edits are its
    arguments. With few rows on CPU, `unstack(lm)` is faster.

    Step 0 runs the prompts and step s the s-th generated token; the last token is not run. Edits
    apply at every step, or at those that they select. Their positions are those in the text, where
    padding does not count; negative ones count back from the last token that the step runs. An edit
    that does the same to a token whatever step runs it makes generation equal to one `run` of the
    final text under the same edit.

    What a tap makes of the steps is joined along its axis of tokens, in the layout of `run` on
    `tokens[:, :-1]`, with the axis of layers first for `blocks.*` sites. Scores and pattern have
    all of these columns as their last axis; scores of tokens that were not there yet are 0. What
    has no axis of tokens, like `reducers.Last` makes, is stacked on a new leading axis `[steps]`,
    whose first is the prompt. Steps after all rows have ended are zeros.

    Args:
        lm: The model.
        prompts: Token ids `[B, T]`, or a list of them for each row, which `pad_left` puts into
            an array of a multiple of 16 columns.
        steps: Tokens to generate.
        mask: True at the tokens of an array of prompts, False at padding, which may be anywhere.
        edits: Edits, as in `run`.
        taps: Sites to read, as in `run`.
        temperature: Logits are divided by it before a token is drawn; 0 takes the likeliest.
        top_k: Draw from the k likeliest tokens.
        top_p: Draw from the fewest likeliest tokens of at least this probability (after top_k).
        key: Source of the randomness, where the temperature is not 0.
        stop: Token ids that end a row; those of the model (`lm.spec.eos`) when None.

    Returns:
        Texts `[B, T + steps]` and what was read.

    Raises:
        JaxdiffError: If a prompt is empty or has an unknown token, the text is longer than learned
            positions, a number is out of range, a key is missing, or `run` would refuse a tap or
            an edit.
    """
    check_steps(steps)
    tokens, mask = prompt_arrays(lm.spec, prompts, mask)
    check_length(lm.spec, mask, steps - 1)
    sampling = sampling_of(lm.spec, temperature, top_k, top_p, key, stop)
    asked, skipped = _asked(lm, taps, edits, tokens.shape[0], tokens.shape[1] + steps - 1)
    return _generate(lm, tokens, mask, sampling, *asked, steps=steps, skipped=skipped)


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
    asked, skipped = _asked(lm, taps, edits, tokens.shape[0], capacity)
    return _prefill(lm, tokens, mask, sampling, *asked, capacity=capacity, skipped=skipped)


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
    _check_state(lm, state, steps)
    asked, skipped = _asked(lm, taps, edits, *state.sequences.shape)
    return _decode(lm, state, *asked, steps=steps, skipped=skipped)


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
    _check_state(lm, state, tokens.shape[1] + 1)
    asked, skipped = _asked(lm, taps, edits, *state.sequences.shape)
    return _extend(lm, state, tokens, mask, *asked, skipped=skipped)


@functools.partial(jax.jit, static_argnames=("steps", "skipped"))
@traced("generate")
def _generate(lm, tokens, mask, sampling, edits, taps, *, steps, skipped):
    asked = Asked(edits, taps, skipped)
    state = empty(lm, mask, sampling, tokens.shape[1] + steps - 1)
    state, first = _given(lm, state, tokens, mask, asked)
    if steps == 1:
        return first
    _, rest = _loop(lm, state, asked, steps - 1)
    axes = token_axes(lm.spec, taps, len(tokens))

    def join(name: str) -> Array:
        return jnp.concatenate([getattr(first, name), getattr(rest, name)], axis=1)

    parts = {name: join(name) for name in ("tokens", "sequences", "positions", "log_probs")}
    return replace(first, **parts, taps=joined(axes, first.taps, rest.taps))


@functools.partial(jax.jit, static_argnames=("capacity", "skipped"))
@traced("prefill")
def _prefill(lm, tokens, mask, sampling, edits, taps, *, capacity, skipped):
    state = empty(lm, mask, sampling, capacity)
    return _given(lm, state, tokens, mask, Asked(edits, taps, skipped))


@functools.partial(jax.jit, static_argnames=("steps", "skipped"), donate_argnames="state")
@traced("decode")
def _decode(lm, state, edits, taps, *, steps, skipped):
    return _loop(lm, state, Asked(edits, taps, skipped), steps)


@functools.partial(jax.jit, static_argnames="skipped", donate_argnames="state")
@traced("extend")
def _extend(lm, state, tokens, mask, edits, taps, *, skipped):
    tokens = jnp.concatenate([state.pending[:, None], jnp.asarray(tokens, jnp.int32)], axis=1)
    mask = jnp.concatenate([jnp.ones((len(mask), 1), bool), jnp.asarray(mask)], axis=1)
    state = replace(state, done=jnp.zeros_like(state.done), step=jnp.zeros_like(state.step))
    return _given(lm, state, tokens, mask, Asked(edits, taps, skipped))


def _given(
    lm: LM, state: State, tokens: HostOrDevice, mask: HostOrDevice, asked: Asked
) -> tuple[State, Generation]:
    """Runs a text that was given."""
    tokens, mask = jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)
    pad = lm.spec.pad or 0
    # Whatever stands at padding: it must be a token, so that it has no effect.
    new, log_probs, found = advance(lm, state, jnp.where(mask, tokens, pad), mask, asked)
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


def _loop(lm: LM, state: State, asked: Asked, steps: int) -> tuple[State, Generation]:
    """Runs the tokens that were generated, one after the other."""
    rows, pad = len(state.pending), lm.spec.pad or 0
    axes = token_axes(lm.spec, asked.taps, rows)

    def step(state: State) -> tuple[State, Array, dict[str, Any]]:
        active = ~state.done[:, None]
        tokens = jnp.where(active, state.pending[:, None], pad)
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


def _asked(
    lm: LM, taps: Sequence[str | Tap], edits: Sequence[Edit], rows: int, columns: int
) -> tuple[tuple[tuple[Edit, ...], tuple[Tap, ...]], frozenset[int]]:
    """Returns edits and taps by canonical names, and the blocks that are skipped."""
    texts = np.broadcast_to(np.int32(0), (rows, columns))
    found = checked(lm.spec, taps, edits, texts)
    return (found.edits, found.taps), found.skipped


def _check_state(lm: LM, state: State, more: int) -> None:
    column, lengths = on_host(state.column), on_host(state.lengths)
    if column is None or lengths is None:
        return
    _check_room(int(column), more, state.capacity)
    texts = np.ones((1, int(lengths.max())), bool)
    check_length(lm.spec, texts, more)


def _check_room(used: int, more: int, capacity: int) -> None:
    if used + more > capacity:
        raise JaxdiffError(
            f"{used} columns are used, and {more} more do not fit a capacity of {capacity}",
            where="capacity",
            fix="give prefill a larger capacity",
        )
