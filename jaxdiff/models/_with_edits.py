"""Edits that stay: a model that carries them is a model like any other."""

from collections.abc import Sequence
from dataclasses import replace

from jaxdiff.models._check import check_edits
from jaxdiff.models._lm import LM
from jaxdiff.models._tap import Edit


def with_edits(lm: LM, edits: Sequence[Edit]) -> LM:
    """Returns the model with edits of its own, after those that it has.

        steered = with_edits(lm, (edit("blocks.8.resid_post", Add(vector, 4.0)),))
        generate(steered, prompts, 32), compare(lm, steered, tokens), sweep(steered, ...)

    Everything that runs the model applies them first, and then the edits of its call. They are
    leaves of the model: another vector compiles nothing anew, and `jax.grad(..., allow_int=True)`
    by the model has its gradient. `dataclasses.replace(lm, edits=())` takes all of them off.

    Args:
        lm: The model.
        edits: Edits, as in `run`.

    Raises:
        JaxdiffError: If the model has no such site.
    """
    check_edits(lm.spec, edits)
    return replace(lm, edits=(*lm.edits, *edits))
