"""Which step is faster on this device: one product of the one against one pass of the other.

After the encoder, which both share, the dense step does four products of `[B, L]` with `[L, M D]`
and the sparse step four passes over the selected entries. One of each is timed, in the shapes of
the run; where a penalty decides how many entries there are, with as many as a list holds.
"""

import functools
import time
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.kernels.product import matmul
from jaxdiff.kernels.weighted_gather import weighted_gather
from jaxdiff.progress import log
from jaxdiff.training.compiled import is_sparse
from jaxdiff.training.penalised_step import slots_of

_REPEATS = 3


def faster_step(
    config: DictionaryConfig, train: TrainConfig, shape: tuple[int, int], mesh: Mesh
) -> Literal["dense", "sparse"]:
    """Returns the step to take: as `train.step` says, or for `auto` the faster one.

    All processes get the answer of the first one.

    Args:
        config: Settings of the dictionary.
        train: Settings of training.
        shape: Models and their width, (M, D).
        mesh: Devices; one of them is measured, with its part of the latents.

    Raises:
        JaxdiffError: If the sparse step is asked for and cannot be taken.
    """
    if not is_sparse(config, train):
        return "dense"
    if train.step == "sparse":
        return "sparse"
    latents, width = config.latents // mesh.size, shape[0] * shape[1]
    entries = round(config.k * train.batch / mesh.size)
    if config.penalised:
        entries = slots_of(train.batch, latents)
    dense, sparse = _times(latents, width, train, entries)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        both = multihost_utils.broadcast_one_to_all(np.asarray([dense, sparse], np.float32))
        dense, sparse = (float(seconds) for seconds in both)
    step = "sparse" if sparse < dense else "dense"
    log(f"{step} step: a product takes {dense * 1e3:.1f} ms, a sparse pass {sparse * 1e3:.1f} ms")
    return step


def _times(latents: int, width: int, train: TrainConfig, entries: int) -> tuple[float, float]:
    """Returns the time of a dense product and of a sparse pass on one device [seconds]."""
    rng = np.random.default_rng(0)
    dtype = jnp.dtype(train.dtype)
    weights = jnp.ones((latents, width))
    codes = jnp.ones((train.batch, latents))
    # A few latents fire in most rows and most in few, about as 1 / rank.
    rows = np.sort(rng.integers(train.batch, size=entries)).astype(np.int32)
    chosen = np.minimum(latents ** rng.random(entries), latents - 1).astype(np.int32)
    offsets = np.searchsorted(rows, np.arange(train.batch + 1)).astype(np.int32)

    dense = _fastest(jax.jit(functools.partial(matmul, dtype=dtype)), codes, weights)
    values = jnp.ones(entries)
    return dense, _fastest(jax.jit(weighted_gather), weights, chosen, values, offsets)


def _fastest(function: Callable, *arguments) -> float:
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)
