"""What a statistic is, and the one pass over activations that folds many of them."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxdiff.dictionaries import Dictionary
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import DATA, sharding
from jaxdiff.progress import progress
from jaxdiff.stats.blocks import pad
from jaxdiff.stats.encoded import Encoded, encode
from jaxdiff.types import ActivationBatch


@runtime_checkable
class Statistic(Protocol):
    """A quantity that is accumulated batch by batch; a pytree, so its arrays are traced.

    `init`, `update` and `merge` are pure and may be jit-compiled. `merge` joins the states of two
    shards of the rows: `merge(update(init(), a), update(init(), b))` is `update(update(init(), a),
    b)` up to rounding. `finalize` runs on the host.
    """

    def init(self) -> Any:
        """Returns the state before the first batch."""
        ...

    def update(self, state: Any, batch: Encoded) -> Any:
        """Returns the state after one more batch."""
        ...

    def merge(self, a: Any, b: Any) -> Any:
        """Returns the state of the rows of `a` followed by those of `b`."""
        ...

    def finalize(self, state: Any) -> Any:
        """Returns the result."""
        ...


# Sees each batch on the host, with the scaled latents [R, L] that the dictionary gave it (on the
# device until they are read; on a mesh, rows may be appended).
Watcher = Callable[[ActivationBatch, Array], None]


def fold(
    statistics: Mapping[str, Statistic],
    batches: Iterable[ActivationBatch],
    *,
    dictionary: Dictionary,
    mean: Float[Array | np.ndarray, "M D"],
    scale: Float[Array | np.ndarray, " M"],
    mesh: Mesh | None = None,
    watch: Sequence[Watcher] = (),
    title: str = "measuring",
    total: int | None = None,
) -> dict[str, Any]:
    """Folds all statistics over the activations in one pass.

    On a mesh the rows of each batch are split over its `data` axis and the compiler adds the
    reductions; the result is the same up to the order of float32 additions within a batch.

    Args:
        statistics: Statistics by name.
        batches: Raw activations in blocks of one size.
        dictionary: A dictionary of normalised activations.
        mean: Mean of each model's activations.
        scale: Factor that brings each model's centred activations to the dictionary's space.
        mesh: Devices; the default device when None.
        watch: Functions that see every batch on the host.
        title: Name of the pass in the progress display.
        total: Rows to come, for the progress display; None when unknown.

    Returns:
        The result of each statistic by name.

    Raises:
        JaxdiffError: If there is no batch.
    """
    statistics = dict(statistics)
    constants = (statistics, dictionary, jnp.asarray(mean), jnp.asarray(scale))
    states = _init(statistics)
    if mesh is not None:
        constants, states = _spread(constants, mesh), _spread(states, mesh)
    start, ticks = 0, []
    with progress(title, total, "tokens") as advance:
        for batch in batches:
            rows = len(batch.mask)
            placed = batch if mesh is None else _place(batch, mesh)
            states, v, tick = _step(constants, states, placed, jnp.int32(start))
            for see in watch:
                see(batch, v)
            # One step may run while the next batch is read; more would only queue up memory.
            ticks = [*ticks[-1:], tick]
            ticks[0].block_until_ready()
            advance(rows if total is None else min(rows, total - start))
            start += rows
    if start == 0:
        raise JaxdiffError("there are no activations to measure", fix="raise text.test_sequences")
    return {name: statistic.finalize(states[name]) for name, statistic in statistics.items()}


# Compiled, so that no two leaves share a buffer: a buffer cannot be donated twice.
@jax.jit
def _init(statistics: dict) -> dict:
    return {name: statistic.init() for name, statistic in statistics.items()}


@functools.partial(jax.jit, donate_argnames="states")
def _step(
    constants: tuple, states: dict, batch: ActivationBatch, start: Int[Array, ""]
) -> tuple[dict, Float[Array, "R L"], Int[Array, ""]]:
    statistics, dictionary, mean, scale = constants
    rows = start + jnp.arange(len(batch.mask), dtype=jnp.int32)
    encoded = encode(dictionary, batch, rows, mean=mean, scale=scale)
    states = {name: s.update(states[name], encoded) for name, s in statistics.items()}
    return states, encoded.v, start + len(batch.mask)


def _spread(tree: Any, mesh: Mesh) -> Any:
    """Copies to all devices of the mesh what is not laid out over it already."""
    whole = sharding(mesh)
    here = lambda a: isinstance(a, jax.Array) and a.sharding.device_set == whole.device_set  # noqa: E731
    return jax.tree.map(lambda a: a if here(a) else jax.device_put(a, whole), tree)


def _place(batch: ActivationBatch, mesh: Mesh) -> ActivationBatch:
    parts = mesh.shape[DATA]
    rows = -(-len(batch.mask) // parts) * parts
    return jax.device_put(pad(batch, rows), sharding(mesh, DATA))
