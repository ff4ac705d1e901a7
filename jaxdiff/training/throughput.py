"""What a source gives against what training eats, and which of them is the limit."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxdiff.activations.source import ActivationSource
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.mesh import make_mesh, sharding
from jaxdiff.training.break_even import faster_step
from jaxdiff.training.compiled import check_mesh, compile_init, compile_step, put
from jaxdiff.training.feed import Feed


@dataclass(frozen=True)
class Throughput:
    """Rates of a source and of training.

    Attributes:
        source: Rows that the source deals out while nothing else runs [tokens/s].
        step: Rows that the steps eat when they are on the devices already [tokens/s].
        together: Rows that training from the source gets through [tokens/s].
        waited: Part of that time in which the devices waited for rows [fraction].
    """

    source: float
    step: float
    together: float
    waited: float

    @property
    def limit(self) -> str:
        """What more speed would have to come from."""
        return "source" if self.source < self.step else "step"

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as JSON."""
        return asdict(self) | {"limit": self.limit}


def measure(
    configs: Sequence[DictionaryConfig],
    train: TrainConfig,
    source: ActivationSource,
    *,
    seconds: float,
    mesh: Mesh | None = None,
) -> Throughput:
    """Times a source alone, the steps alone, and both as in training.

    Args:
        configs: Dictionaries that are trained on each batch.
        train: Settings of training.
        source: Activations.
        seconds: Time for each of the three, after what is compiled or opened first [seconds].
        mesh: Devices; one when None.

    Raises:
        JaxdiffError: If the mesh does not fit.
    """
    mesh = make_mesh(1, 1) if mesh is None else mesh
    for config in configs:
        check_mesh(config, train, mesh)
    batches = source.batches(train.batch, seed=0)
    first = put(next(batches).x, mesh)
    alone = _rate(train.batch, seconds, (next(batches).x for _ in iter(int, 1)))

    steps = [_Steps(config, train, source, first, mesh) for config in configs]
    for each in steps:
        jax.block_until_ready(each.take(first))
    resident = _rate(train.batch, seconds, _each(steps, first))

    with Feed(source.batches(train.batch, seed=0), mesh) as feed:
        training = _training(feed, steps)
        next(training)
        feed.waited()
        both = _rate(train.batch, seconds, training)
        return Throughput(alone, resident, both, feed.waited())


class _Steps:
    """The steps of one dictionary, which start from the first batch."""

    def __init__(self, config, train: TrainConfig, source: ActivationSource, x, mesh: Mesh):
        step = faster_step(config, train, source.shape, mesh)
        train = train.model_copy(update={"step": step})
        start, like = compile_init(config, train, source.shape, mesh)
        self._normalization = jax.device_put(source.normalization, sharding(mesh))
        self._state = start(x, self._normalization, key=jax.random.key(0))
        self._step = compile_step(config, train, like, mesh)

    def take(self, x: Float[Array, "B M D"]) -> Array:
        """Sends one step; returns an array that is there when it is done."""
        self._state, info = self._step(self._state, x, self._normalization)
        return info.loss


def _each(steps: list[_Steps], x: Array) -> Iterator[None]:
    while True:
        jax.block_until_ready([each.take(x) for each in steps])
        yield


def _training(feed: Feed, steps: list[_Steps]) -> Iterator[None]:
    while True:
        x = feed.take()
        feed.prefetch([each.take(x) for each in steps])
        yield


def _rate(batch: int, seconds: float, work: Iterator[Any]) -> float:
    """Returns the rows of the batches that are done in this time [tokens/s]."""
    start, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        next(work)
        done += 1
    return float(np.float64(done * batch) / spent)
