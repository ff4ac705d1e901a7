"""A session as one program."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import models
from jaxdiff.errors import JaxdiffError, nearest
from jaxdiff.models import LM, ModelConfig
from jaxdiff.models._check import checked, unnamed
from jaxdiff.models._lm import without_weights
from jaxdiff.models._run import check_like_tokens
from jaxdiff.models._traces import traced
from jaxdiff.sessions._check import check, said_of
from jaxdiff.sessions._step import Session, Step
from jaxdiff.sessions.values import VALUES, filled


def run(session: Session, lms: Mapping[str, LM]) -> tuple[Any, ...]:
    """Computes a session in one program; returns what it keeps, in order.

        logits, vector = sessions.run(job, {"base": base, "ft": ft})

    Another session of the same structure, with other tokens, vectors or strengths, is the same
    program. It is pure: differentiate it with respect to the leaves of the session or of a model.

    Args:
        session: The session.
        lms: Models by the names that its steps use.

    Raises:
        JaxdiffError: If a model is missing, or `models.run` would refuse a step; the message names
            it. Shapes are found while the program is traced, before it is compiled.
    """
    given = _given(session, lms)
    return _run(session, given)


def shapes(session: Session, lms: Mapping[str, LM | ModelConfig]) -> tuple[Any, ...]:
    """Returns what `run` would return, as `jax.ShapeDtypeStruct`s, and refuses what it would.

    Nothing is run or compiled, and the models' weights may be left out: a `ModelConfig` will do.

    Args:
        session: The session.
        lms: Models by name.

    Raises:
        JaxdiffError: As `run` does.
    """
    whole = {
        name: without_weights(lm) if isinstance(lm, ModelConfig) else lm for name, lm in lms.items()
    }
    return jax.eval_shape(_computed, session, _given(session, whole))


def _given(session: Session, lms: Mapping[str, LM]) -> dict[str, LM]:
    """Returns the models that are used, after all checks that need no shapes."""
    check(session)
    if not isinstance(lms, Mapping):
        raise JaxdiffError(
            f"models are given by name, not as {type(lms).__name__}", fix='{"base": lm}'
        )
    used = sorted({step.model for step in session.steps})
    for name in used:
        if name not in lms:
            users = [f"step {step.name!r}" for step in session.steps if step.model == name]
            raise JaxdiffError(
                f"there is no model {name!r}", where=", ".join(users), fix=nearest(name, lms)
            )
    for step in session.steps:
        with said_of(f"step {step.name!r}"):
            _check(step, lms[step.model])
    return {name: unnamed(lms[name]) for name in used}


def _check(step: Step, lm: LM) -> None:
    """Refuses sites, positions and rows that do not exist, where the host knows them."""

    def unknown(leaf: Any) -> Any:
        return jnp.int32(0) if isinstance(leaf, VALUES) else leaf

    taps, edits = jax.tree.map(
        unknown, (step.taps, step.edits), is_leaf=lambda leaf: isinstance(leaf, VALUES)
    )
    checked(lm, taps, edits, step.tokens, own_positions=step.positions is not None)
    check_like_tokens(step.tokens, step.sequences, step.positions)


def _computed(session: Session, lms: Mapping[str, LM]) -> tuple[Any, ...]:
    found: dict[str, dict[str, Any]] = {}
    for step in session.steps:
        with said_of(f"step {step.name!r}"):
            taps, edits = filled((step.taps, step.edits), found)
            logits, acts = models.run(
                lms[step.model],
                step.tokens,
                taps,
                edits,
                sequences=step.sequences,
                positions=step.positions,
                logits=step.logits,
            )
        found[step.name] = acts | ({} if logits is None else {"logits": logits})
    with said_of("keep"):
        return filled(session.keep, found)


_run = jax.jit(traced("session")(_computed), inline=True)
