"""What all trainings share: a step of an optax optimizer, and a check of its losses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxdiff.errors import JaxdiffError


def updated(
    optimizer: optax.GradientTransformation, gradient: Any, state: Any, now: Any
) -> tuple[Any, Any]:
    """Returns what is trained, and the optimizer's state, after a step."""
    # Optax raises float32 decay rates to int32 counts, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer.update(gradient, state, now)
    return jax.tree.map(jnp.add, now, updates), state


def check_losses(losses: list[Array], steps: int) -> None:
    """Refuses the losses of fewer steps than were asked for, `[]` or `[N]` each, and NaN."""
    if len(losses) < steps:
        raise JaxdiffError(
            f"there are {len(losses)} batches for {steps} steps",
            where="batches",
            fix="lower steps, or repeat the batches: itertools.cycle(batches)",
        )
    finite = np.isfinite(np.asarray(losses))
    finite = finite.all(axis=tuple(range(1, finite.ndim)))
    if not finite.all():
        raise JaxdiffError(
            f"the loss is not finite from step {int(np.argmin(finite))} on",
            where="loss",
            fix="lower the learning rate, and look at what the model says before it is trained",
        )
