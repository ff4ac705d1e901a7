"""Generation with a cache, in one program."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdiff.models._generation import Generation, asked_of, generated, given
from jaxdiff.models._layout import joined, token_axes
from jaxdiff.models._lm import LM
from jaxdiff.models._prompts import (
    Prompts,
    check_length,
    check_steps,
    prompt_arrays,
    sampling_of,
)
from jaxdiff.models._state import Asked, empty
from jaxdiff.models._tap import Edit, Tap
from jaxdiff.models._traces import traced
from jaxdiff.types import HostOrDevice


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
    asked = asked_of(lm, taps, edits, tokens.shape[0], tokens.shape[1] + steps - 1)
    return _generate(
        asked.lm,
        tokens,
        mask,
        sampling,
        asked.edits,
        asked.taps,
        steps=steps,
        skipped=asked.skipped,
    )


@functools.partial(jax.jit, static_argnames=("steps", "skipped"))
@traced("generate")
def _generate(lm, tokens, mask, sampling, edits, taps, *, steps, skipped):
    asked = Asked(edits, taps, skipped)
    state = empty(lm, mask, sampling, tokens.shape[1] + steps - 1)
    state, first = given(lm, state, tokens, mask, asked)
    if steps == 1:
        return first
    _, rest = generated(lm, state, asked, steps - 1)
    axes = token_axes(lm.spec, taps, len(tokens))

    def join(name: str) -> Array:
        return jnp.concatenate([getattr(first, name), getattr(rest, name)], axis=1)

    parts = {name: join(name) for name in ("tokens", "sequences", "positions", "log_probs")}
    return replace(first, **parts, taps=joined(axes, first.taps, rest.taps))
