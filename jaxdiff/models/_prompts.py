"""Prompts of different lengths in one array, and what may be asked of a generation."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._sampling import Sampling
from jaxdiff.models.spec import ModelConfig
from jaxdiff.types import HostOrDevice

Prompts = HostOrDevice | Sequence[Any]
"""Token ids `[B, T]`, or a list of a list for each row."""


def pad_left(
    prompts: Sequence[Any], *, multiple: int = 16, fill: int = 0
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """Puts prompts of different lengths into one array, with padding before them.

    Args:
        prompts: Token ids of each row.
        multiple: The number of columns is a multiple of it [tokens]: a program is compiled for each
            number of columns.
        fill: Token id at padding.

    Returns:
        Token ids, and a mask that is True at those of the prompts.
    """
    length = max((len(prompt) for prompt in prompts), default=0)
    columns = -(-length // multiple) * multiple
    tokens = np.full((len(prompts), columns), fill, np.int32)
    mask = np.zeros((len(prompts), columns), bool)
    for row, prompt in enumerate(prompts):
        if len(prompt):
            tokens[row, -len(prompt) :], mask[row, -len(prompt) :] = prompt, True
    return tokens, mask


def prompt_arrays(
    spec: ModelConfig, prompts: Prompts, mask: HostOrDevice | None, *, empty: bool = False
) -> tuple[HostOrDevice, HostOrDevice]:
    """Returns tokens `[B, T]` and where they are no padding.

    Args:
        spec: The model.
        prompts: Tokens, or a list of a list for each row.
        mask: True at the tokens of prompts that are an array; everywhere when None.
        empty: Whether rows may be empty.

    Raises:
        JaxdiffError: If a row is empty, or a token is no token of the model.
    """
    if isinstance(prompts, Sequence):
        kinds = {np.asarray(row).dtype.kind for row in prompts if np.size(row)}
        if "U" in kinds:
            raise JaxdiffError(
                "prompts are token ids, not text", where="prompts", fix="[tokenizer.encode(text)]"
            )
        if mask is not None:
            raise JaxdiffError("lists of tokens need no mask", where="mask", fix="leave it out")
        if any(isinstance(row, (int, np.integer)) for row in prompts):
            raise JaxdiffError(
                "the prompts are one list of tokens", where="prompts", fix="write [tokens]"
            )
        if "f" in kinds:
            raise JaxdiffError("prompts are token ids, not floats", where="prompts")
        prompts, mask = pad_left(prompts)
    shape = getattr(prompts, "shape", None)
    if shape is None or len(shape) != 2 or not shape[0]:
        given = type(prompts).__name__ if shape is None else list(shape)
        raise JaxdiffError(f"prompts are [B, T], not {given}", where="prompts")
    if not np.issubdtype(prompts.dtype, np.integer):
        raise JaxdiffError(f"prompts are token ids, not {prompts.dtype}", where="prompts")
    mask = np.ones(shape, bool) if mask is None else mask
    if isinstance(mask, list):
        raise JaxdiffError("the mask is a list", where="mask", fix="np.asarray(mask)")
    if mask.shape != prompts.shape or mask.dtype != bool:
        raise JaxdiffError(
            f"the mask is {mask.dtype}{list(mask.shape)}, the prompts {list(prompts.shape)}",
            where="mask",
            fix="it is True at tokens and False at padding",
        )
    _check_tokens(spec, prompts, mask, empty)
    return prompts, mask


def _check_tokens(spec: ModelConfig, tokens: HostOrDevice, mask: HostOrDevice, empty: bool) -> None:
    known_mask = on_host(mask)
    if not empty and (tokens.shape[1] == 0 or known_mask is not None):
        without = [] if known_mask is None else np.flatnonzero(~known_mask.any(axis=1))
        if tokens.shape[1] == 0 or len(without):
            rows = ", ".join(map(str, without)) if len(without) else "all"
            raise JaxdiffError(
                f"prompts without a token: rows {rows}",
                where="prompts",
                fix="begin each with the model's bos token"
                + ("" if spec.bos is None else f", {spec.bos}"),
            )
    known = on_host(tokens)
    if known is None or known_mask is None:
        return
    known = known[known_mask]
    bad = known[(known < 0) | (known >= spec.vocab_size)]
    if bad.size:
        raise JaxdiffError(
            f"there is no token {bad[0]} in a vocabulary of {spec.vocab_size}", where="prompts"
        )


def check_length(
    spec: ModelConfig, mask: HostOrDevice, more: int, before: HostOrDevice | None = None
) -> None:
    """Refuses texts that are longer than learned positions.

    Args:
        spec: The model.
        mask: True at the tokens that are given, `[B, T]`.
        more: Tokens that are run after them.
        before: Tokens of each row that have been run before, `[B]`.
    """
    known, past = on_host(mask), 0 if before is None else on_host(before)
    longest = mask.shape[1] if known is None else int((known.sum(axis=1) + past).max())
    if spec.rope is None and longest + more > spec.context:
        raise JaxdiffError(
            f"a text of {longest} and {more} more tokens is longer than the {spec.context} "
            f"positions that {spec.architecture} has learned",
            where="steps",
            fix=f"there are positions for {max(spec.context - longest, 0)} more",
        )


def sampling_of(
    spec: ModelConfig,
    temperature: Any,
    top_k: int | None,
    top_p: Any,
    key: Any,
    stop: Sequence[int] | None,
) -> Sampling:
    """Returns the rule for the choice of tokens.

    Raises:
        JaxdiffError: If a number is out of range, or there is no key to draw with.
    """
    hot, share = on_host(temperature), None if top_p is None else on_host(top_p)
    if hot is not None and not hot >= 0:
        raise JaxdiffError(
            f"temperature={temperature}", where="temperature", fix="it is 0 (greedy) or above"
        )
    if key is None and (hot is None or hot > 0):
        raise JaxdiffError(
            "drawing tokens needs a key", where="key", fix="for instance key=jax.random.key(0)"
        )
    if top_k is not None and top_k < 1:
        raise JaxdiffError(f"top_k={top_k}", where="top_k", fix="it is 1 or above, or None")
    if share is not None and not 0 < share <= 1:
        raise JaxdiffError(f"top_p={top_p}", where="top_p", fix="it is in (0, 1], or None")
    ids = spec.eos if stop is None else tuple(stop)
    return Sampling(
        temperature=jnp.asarray(temperature, jnp.float32),
        key=jax.random.key(0) if key is None else key,
        stop=jnp.asarray(ids, jnp.int32),
        top_p=None if top_p is None else jnp.asarray(top_p, jnp.float32),
        top_k=top_k,
    )


def check_steps(steps: int) -> None:
    """Refuses fewer steps than one."""
    if steps < 1:
        raise JaxdiffError(f"steps={steps}", where="steps", fix="at least one token is generated")


def on_host(value: Any) -> np.ndarray | None:
    """Returns a value that is known now; None inside of a program."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value)
