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

from jaxdiff.descent import check_losses, updated
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
                _check_batch(lm, edits, batch)
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


def _is_float(leaf: Any) -> bool:
    # Python's numbers are settings, like the strength of a vector.
    array = isinstance(leaf, (*HostOrDevice.__args__, np.generic))
    return array and jnp.issubdtype(leaf.dtype, jnp.floating)


def _check_batch(lm: LM, edits: Sequence[Edit], batch: Batch) -> None:
    if "tokens" not in batch:
        raise JaxdiffError(
            f"a batch has {', '.join(batch) or 'nothing'}, and no tokens",
            where="batches",
            fix="a batch is a dict: {'tokens': ids, ...}",
        )
    checked(lm, (), tuple(edits), batch["tokens"], own_positions="positions" in batch)
