"""Edits that are trained: optax on their leaves, through the model, which stays as it is."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxdiff.edits import Edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, run
from jaxdiff.models._check import checked
from jaxdiff.models._traces import traced
from jaxdiff.progress import progress
from jaxdiff.types import HostOrDevice

Batch = Mapping[str, Any]
Loss = Callable[[Array, Batch], Float[Array, ""]]
_RUN = ("tokens", "sequences", "positions")


def train_edits(
    lm: LM,
    edits: Sequence[Edit],
    batches: Iterable[Batch],
    loss: Loss,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    trained: Callable[[str], bool] | None = None,
    logits: Literal[True, "last"] = True,
) -> tuple[tuple[Edit, ...], Float[np.ndarray, " steps"]]:
    """Trains the float arrays of edits; selectors, Python's numbers and the model stay.

        start = edit("blocks.8.resid_post", Add(jnp.zeros(lm.spec.d_model)), positions=-1)
        (steer,), losses = train_edits(lm, (start,), batches, loss, optimizer=adam(1e-2), steps=200)

    A steering vector is `Add`, a low-rank update `LowRank`, a subspace the view `Subspace`, whose
    vectors are made orthonormal wherever they are used. Arrays are trained in float32.

    Args:
        lm: The model.
        edits: The edits at the start.
        batches: Batches of equal shapes: `tokens` `[B, T]`; `sequences` and `positions` where
            `models.run` needs them; and whatever the loss reads.
        loss: Of the logits of the edited run and the batch. It is a part of the program: the same
            function compiles nothing anew.
        optimizer: An optax optimizer; again, the same one compiles nothing anew.
        steps: Batches to train on.
        trained: Says of the path of a float array, like `[0].op.vector`, whether it is trained;
            all but those of dictionaries and normalisations when None.
        logits: Which logits the loss sees: True for all, "last" for those of each row's last token.

    Returns:
        The trained edits, and the loss of each step before its update.

    Raises:
        JaxdiffError: If nothing is to be trained, there are too few batches, the loss is no longer
            finite, or an edit does not fit.
    """
    named, structure = jax.tree_util.tree_flatten_with_path(tuple(edits))
    chosen = trained or (lambda path: ".dictionary" not in path and ".normalization" not in path)
    paths = [jax.tree_util.keystr(path) for path, _ in named]
    leaves = dict(zip(paths, (leaf for _, leaf in named), strict=True))
    own = {path: leaf for path, leaf in leaves.items() if _is_float(leaf) and chosen(path)}
    if not own:
        raise JaxdiffError(
            "no leaf of these edits is trained",
            where="edits",
            fix="float arrays are: Add(jnp.zeros(D)); these leaves are here: "
            + (", ".join(paths) or "none"),
        )
    fixed = {path: leaf for path, leaf in leaves.items() if path not in own}
    # Copies, because each step gives its memory to the next one.
    now = {path: jnp.array(leaf, jnp.float32) for path, leaf in own.items()}
    state, losses = optimizer.init(now), []
    with progress("training edits", steps, "steps") as advance:
        for batch in itertools.islice(batches, steps):
            if not losses:
                checked(lm, (), tuple(edits), batch["tokens"])
            now, state, value = _step(
                now,
                state,
                fixed,
                lm,
                dict(batch),
                loss=loss,
                optimizer=optimizer,
                structure=structure,
                order=tuple(paths),
                logits=logits,
            )
            losses.append(value)
            advance()
    check_losses(losses, steps)
    return structure.unflatten((now | fixed)[path] for path in paths), np.asarray(losses)


@functools.partial(
    jax.jit,
    static_argnames=("loss", "optimizer", "structure", "order", "logits"),
    donate_argnames=("now", "state"),
)
@traced("train_edits")
def _step(
    now: dict[str, Array],
    state: Any,
    fixed: dict[str, Any],
    lm: LM,
    batch: dict[str, Any],
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    structure: Any,
    order: tuple[str, ...],
    logits: Literal[True, "last"],
) -> tuple[dict[str, Array], Any, Array]:
    tokens, more = batch["tokens"], {k: batch[k] for k in _RUN[1:] if k in batch}

    def objective(now: dict[str, Array]) -> Array:
        edits = structure.unflatten((now | fixed)[path] for path in order)
        out, _ = run(lm, tokens, edits=edits, logits=logits, **more)
        assert out is not None
        return loss(out, batch)

    value, gradient = jax.value_and_grad(objective)(now)
    now, state = updated(optimizer, gradient, state, now)
    return now, state, value


def updated(
    optimizer: optax.GradientTransformation, gradient: Any, state: Any, now: Any
) -> tuple[Any, Any]:
    """Returns what is trained, and the optimizer's state, after a step."""
    # Optax raises float32 decay rates to int32 counts, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer.update(gradient, state, now)
    return jax.tree.map(jnp.add, now, updates), state


def _is_float(leaf: Any) -> bool:
    # Python's numbers are settings, like the strength of a vector.
    array = isinstance(leaf, (*HostOrDevice.__args__, np.generic))
    return array and jnp.issubdtype(leaf.dtype, jnp.floating)


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
