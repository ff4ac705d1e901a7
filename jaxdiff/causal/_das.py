"""Distributed alignment search: which subspace of a site carries a variable of an algorithm.

The subspace is trained so that putting its coordinates from a source text into a base text makes
the model answer as the algorithm does when the variable alone has the source's value (Geiger et
al., arXiv:2303.02536). A search may find something where there is nothing, so it is run twice more:
on targets that were shuffled, and in a model with random weights.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxdiff.causal._training import Batch, train_edits
from jaxdiff.edits import Edit, FromRow, Subspace, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, canonical_site, init, run, sites, unstack
from jaxdiff.models._lm import stacked
from jaxdiff.types import HostOrDevice


@dataclass(frozen=True)
class Interchanges:
    """Counterfactual examples.

    Attributes:
        base: Token ids of the texts that are changed.
        source: Token ids of the texts that the variable's value is taken from.
        target: Token id that the algorithm gives next when the variable has the source's value.
    """

    base: Int[HostOrDevice, "E T"]
    source: Int[HostOrDevice, "E T"]
    target: Int[HostOrDevice, " E"]

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class Alignment:
    """What `das` found; accuracies are fractions of the held-out examples.

    Attributes:
        view: The subspace.
        accuracy: How often an interchange in it makes the target the likeliest token.
        placebo: The same after training on shuffled targets, measured on shuffled ones.
        random_model: The same after training in a model with random weights.
        losses: Loss of each step, in nats.
    """

    view: Subspace
    accuracy: float
    placebo: float
    random_model: float
    losses: Float[np.ndarray, " steps"]


def das(
    lm: LM,
    site: str,
    train: Interchanges,
    held_out: Interchanges,
    *,
    size: int,
    key: Key[Array, ""],
    positions: int | Int[HostOrDevice, " K"] | None = -1,
    steps: int = 500,
    batch: int = 32,
    optimizer: optax.GradientTransformation | None = None,
) -> Alignment:
    """Searches for the subspace of a site that carries a variable.

    Args:
        lm: The model.
        site: Where, for instance `blocks.8.resid_post`; its last axis is searched.
        train: Examples to train on.
        held_out: Other examples, to measure on.
        size: Dimensions of the subspace.
        key: Source of the first vectors, the order of examples, and the controls.
        positions: Tokens whose values are interchanged; all when None.
        steps: Steps of each of the three trainings.
        batch: Examples in each step; each is two rows, base and source.
        optimizer: Adam with learning rate 1e-2 when None.

    Raises:
        JaxdiffError: If the site does not exist or is too narrow, or there are no examples.
    """
    width = int(sites(lm)[canonical_site(lm.spec, site)][-1])
    if not 0 < size <= width:
        raise JaxdiffError(f"a subspace of {size} of {width} dimensions", where=site)
    if not len(train) or not len(held_out):
        raise JaxdiffError("there are no examples", where="train" if not len(train) else "held_out")
    names = ("vectors", "order", "train", "held_out", "model")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    search = functools.partial(
        _search,
        start=_interchange(
            site, jax.random.normal(keys["vectors"], (width, size)), batch, positions
        ),
        steps=steps,
        batch=batch,
        optimizer=optimizer or optax.adam(1e-2),
        key=keys["order"],
    )
    found, accuracy, losses = search(lm, train, held_out)
    shuffled = (_shuffled(train, keys["train"]), _shuffled(held_out, keys["held_out"]))
    return Alignment(
        view=found.view,
        accuracy=accuracy,
        placebo=search(lm, *shuffled)[1],
        random_model=search(_random(lm, keys["model"]), train, held_out)[1],
        losses=losses,
    )


def _interchange(site: str, vectors: Array, batch: int, positions: object) -> Edit:
    """Returns the edit of a batch whose first rows are bases and whose last are their sources."""
    rows = np.arange(batch, dtype=np.int32)
    return edit(
        site,
        FromRow(np.concatenate([rows + batch] * 2)),
        view=Subspace(vectors),
        positions=positions,
        rows=rows,
    )


def _search(
    lm: LM,
    train: Interchanges,
    held_out: Interchanges,
    *,
    start: Edit,
    steps: int,
    batch: int,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
) -> tuple[Edit, float, Float[np.ndarray, " steps"]]:
    batches = _batches(train, batch, key)
    (found,), losses = train_edits(
        lm, (start,), batches, _loss, optimizer=optimizer, steps=steps, logits="last"
    )
    right = []
    for first in range(0, len(held_out), batch):
        chosen = np.arange(first, first + batch)
        own = _batch(held_out, chosen % len(held_out))
        logits, _ = run(lm, own["tokens"], edits=(found,), logits="last")
        answers = np.asarray(jnp.argmax(jnp.asarray(logits)[:batch], axis=-1))
        right.append((answers == own["target"])[chosen < len(held_out)])
    return found, float(np.mean(np.concatenate(right))), losses


def _batches(examples: Interchanges, batch: int, key: Key[Array, ""]) -> Iterator[Batch]:
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    while True:
        # With replacement, so that there may be fewer examples than a batch has.
        yield _batch(examples, rng.integers(0, len(examples), batch))


def _batch(examples: Interchanges, chosen: Int[np.ndarray, " B"]) -> Batch:
    both = [np.asarray(part)[chosen] for part in (examples.base, examples.source)]
    return {"tokens": np.concatenate(both), "target": np.asarray(examples.target)[chosen]}


def _loss(logits: Array, batch: Batch) -> Float[Array, ""]:
    target = jnp.asarray(batch["target"])
    own = jax.nn.log_softmax(logits[: target.shape[0]].astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(own, target[:, None], axis=1))


def _shuffled(examples: Interchanges, key: Key[Array, ""]) -> Interchanges:
    order = np.asarray(jax.random.permutation(key, len(examples)))
    return replace(examples, target=np.asarray(examples.target)[order])


def _random(lm: LM, key: Key[Array, ""]) -> LM:
    """Returns a model of the same kind with random weights, where those of the model are."""
    new = init(lm.spec, key=key)
    new = new if stacked(lm) else unstack(new)
    params = jax.tree.map(
        lambda n, o: jax.device_put(n.astype(o.dtype), o.sharding), new.params, lm.params
    )
    return replace(lm, params=params)
