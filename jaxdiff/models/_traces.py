"""Counts and explains how often programs are traced, which is when they are compiled."""

import functools
import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_log = logging.getLogger(__name__)
_signatures: dict[str, list[dict[str, str]]] = defaultdict(list)


def traces(program: str | None = None) -> int:
    """Returns how often a program (`run`, `generate`, ...) was traced, or all together."""
    names = [program] if program else list(_signatures)
    return sum(len(_signatures[name]) for name in names)


def traced(program: str) -> Callable[[Callable], Callable]:
    """Decorates a function under `jax.jit`: each trace is counted, and logged with the reason.

    The reason is what differs from the most similar trace before: a leaf's shape or dtype, or a
    part of the structure. It goes to the logger `jaxdiff.models` at level INFO.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            _record(program, (args, kwargs))
            return function(*args, **kwargs)

        return wrapped

    return decorate


def _record(program: str, arguments: Any) -> None:
    new = _signature(arguments)
    before = _signatures[program]
    if not before:
        _log.info("%s: compiled for the first time", program)
    else:
        differences = min((_difference(old, new) for old in before), key=len)
        reason = "; ".join(differences[:4]) or "equal arguments in another program"
        _log.info("%s: compiled again (%d): %s", program, len(before), reason)
    before.append(new)


def _signature(arguments: Any) -> dict[str, str]:
    leaves, structure = jax.tree_util.tree_flatten_with_path(arguments)
    signature = {
        jax.tree_util.keystr(path): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        if hasattr(leaf, "shape") or isinstance(leaf, (int, float))
        else repr(leaf)
        for path, leaf in leaves
    }
    return signature | {"structure": str(structure)}


def _difference(old: dict[str, str], new: dict[str, str]) -> list[str]:
    names = [n for n in (*old, *(n for n in new if n not in old)) if n != "structure"]
    changed = [
        f"{n} was {old.get(n, 'absent')}, is {new.get(n, 'absent')}"
        for n in names
        if old.get(n) != new.get(n)
    ]
    if not changed and old["structure"] != new["structure"]:
        changed = ["another site, op or static setting"]
    return changed
