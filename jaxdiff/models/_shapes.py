"""What a run would return: shapes and dtypes, without running or compiling anything."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._check import checked
from jaxdiff.models._lm import LM, without_weights
from jaxdiff.models._run import Logits, run
from jaxdiff.models._tap import Edit, Tap
from jaxdiff.models.spec import ModelConfig


def shapes(
    model: LM | ModelConfig,
    tokens: tuple[int, int],
    taps: Sequence[str | Tap] = (),
    edits: Sequence[Edit] = (),
    *,
    logits: Logits = True,
) -> tuple[jax.ShapeDtypeStruct | None, dict[str, Any]]:
    """Returns what `run` would return, as `jax.ShapeDtypeStruct`s, and refuses what it would.

    Args:
        model: The model, with or without its weights: shapes will do, or a `ModelConfig`
            (`load_spec`), whose weights are float32 then.
        tokens: Shape of the tokens, (B, T).
        taps: As for `run`.
        edits: As for `run`.
        logits: As for `run`.

    Raises:
        JaxdiffError: If a site does not exist, or an edit does not fit.
    """
    if isinstance(model, ModelConfig):
        model = without_weights(model)
    if not (isinstance(tokens, tuple) and len(tokens) == 2):
        raise JaxdiffError(
            f"tokens are given as their shape (B, T), not as {type(tokens).__name__}",
            where="shapes",
            fix="models.shapes(lm, tokens.shape, taps)",
        )
    # Numbers out of range are refused here; in the abstract run they have no value.
    checked(model, taps, edits, np.broadcast_to(np.int32(0), tokens))
    ids = jax.ShapeDtypeStruct(tokens, jnp.int32)
    named = tuple(Tap(tap) if isinstance(tap, str) else tap for tap in taps)

    def abstractly(lm: LM, ids: jax.Array, taps: tuple[Tap, ...], edits: tuple[Edit, ...]):
        return run(lm, ids, taps, edits, logits=logits)

    return jax.eval_shape(abstractly, model, ids, named, tuple(edits))
