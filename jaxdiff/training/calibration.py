"""The inference threshold, as an exact quantile of held-out activations, and what comes of it."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.activations.normalization import Normalization
from jaxdiff.dictionaries.decoding import decode
from jaxdiff.dictionaries.dictionary import (
    Dictionary,
    code_norms,
    encode,
    pre_activations,
    ranking_keys,
    read_by,
    written_by,
)
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import to_host
from jaxdiff.types import ActivationBatch, HostOrDevice

Validation = Callable[[], Iterable[ActivationBatch]]
"""Makes a new pass over held-out activations; every pass must give the same rows."""

_PIVOTS = 63
_INF_BITS = 0x7F800000


@dataclass(frozen=True)
class Evaluation:
    """A dictionary under its inference rule on held-out activations.

    Attributes:
        tokens: Rows used [tokens].
        l0: Active latents per token (mean over models when decoupled).
        fve: Fraction of variance explained, for each model; 0 where nothing varies.
        fve_all: The same over all models.
        dead: Part of the latents that no row activates.
    """

    tokens: int
    l0: float
    fve: tuple[float, ...]
    fve_all: float
    dead: float


def calibrate(d: Dictionary, validation: Validation, normalization: Normalization) -> Dictionary:
    """Sets the threshold of a batch_topk dictionary so that its mean L0 on held-out rows is k.

    Of the ranking keys of all (row, latent) pairs of N rows, the round(k N) largest must exceed the
    threshold and no others. It is found by bisection on the keys' bit patterns with 63 pivots in a
    pass, hence exactly, in at most 8 passes, and without holding the keys. It lies halfway between
    the last key kept and the first one dropped, so that rounding elsewhere does not matter. Keys
    that are equal to the last one are all kept or all dropped, whichever is nearer to k. With
    decoupled norms every model gets its own. Dictionaries with another rule are returned as is.

    Args:
        d: Dictionary in the normalised space.
        validation: Makes a pass over the held-out rows, in raw space.
        normalization: Maps raw rows to what the dictionary was trained on.

    Returns:
        The dictionary with its threshold.

    Raises:
        JaxdiffError: If no held-out row is valid.
    """
    if d.activation != "batch_topk":
        return d
    rows = sum(int(np.sum(np.asarray(batch.mask))) for batch in validation())
    if rows == 0:
        raise JaxdiffError(
            "there is no held-out activation to calibrate the threshold on",
            where="validation",
            fix="raise text.validation_sequences",
        )
    batches = functools.partial(_fold, d, validation, normalization)
    pivot = _search(batches, round(d.k * rows), d.threshold.size)
    gap = batches(_gap, pivot[None], np.maximum)
    kept, dropped = -gap[0], gap[1]
    middle = dropped + (np.where(np.isfinite(kept), kept, dropped) - dropped) / 2
    # Between neighbouring floats there is no middle; the dropped key itself separates them.
    threshold = np.where(middle < kept, middle, dropped).astype(np.float32)
    where = d.threshold.sharding
    threshold = jax.device_put(threshold.reshape(d.threshold.shape), where)
    return dataclasses.replace(d, threshold=threshold)


def evaluate(d: Dictionary, validation: Validation, normalization: Normalization) -> Evaluation:
    """Measures L0, FVE and dead latents on held-out rows, with the inference rule.

    Sums over a batch are float32 on the device and float64 over batches; variances are about the
    mean of all rows.
    """
    sums: dict[str, np.ndarray] = {}
    for batch in validation():
        x, mask = np.asarray(batch.x), np.asarray(batch.mask)
        for name, value in to_host(_measure(d, normalization, x, mask)).items():
            sums[name] = sums.get(name, 0) + value.astype(np.float64)
    rows = float(sums["rows"])
    total = sums["squares"] - np.sum(sums["x"] ** 2, axis=-1) / rows
    return Evaluation(
        tokens=int(rows),
        l0=float(sums["active"] / rows),
        fve=tuple(_explained(*pair) for pair in zip(sums["residual"], total, strict=True)),
        fve_all=_explained(sums["residual"].sum(), total.sum()),
        dead=float(np.mean(sums["fired"] == 0)),
    )


def _explained(residual: float, total: float) -> float:
    return float(1 - residual / total) if total > 0 else 0.0


def _search(batches, n: int, groups: int) -> np.ndarray:
    """Returns, for each group, the bit pattern that (as nearly as ties allow) n keys reach."""
    # Invariant: count(keys >= low) = above >= n > below = count(keys >= high).
    low, high = np.zeros(groups, np.int64), np.full(groups, _INF_BITS + 1, np.int64)
    above, below = np.full(groups, np.iinfo(np.int64).max), np.zeros(groups, np.int64)
    while np.any(searching := (above != n) & (high - low > 1)):
        parts = np.arange(1, _PIVOTS + 1)[:, None]
        pivots = np.clip(low + (high - low) * parts // (_PIVOTS + 1), low + 1, high - 1)
        counts = batches(_count, pivots, np.add)
        for g in np.nonzero(searching)[0]:
            first = int(np.sum(counts[:, g] >= n))  # Counts fall as pivots rise.
            if first > 0:
                low[g], above[g] = pivots[first - 1, g], counts[first - 1, g]
            if first < _PIVOTS:
                high[g], below[g] = pivots[first, g], counts[first, g]
    return np.where(n - below < above - n, high, low)


def _fold(d, validation, normalization, function, pivots, combine) -> np.ndarray:
    """Folds a function of the keys over a pass, on the host in 64 bits."""
    result, pivots = None, pivots.astype(np.int32)
    for batch in validation():
        x, mask = np.asarray(batch.x), np.asarray(batch.mask)
        value = to_host(function(d, normalization, x, mask, pivots))
        value = value.astype(np.int64 if value.dtype == np.int32 else np.float64)
        result = value if result is None else combine(result, value)
    assert result is not None
    return result


def _keys(d, normalization, x, mask) -> Float[Array, "R G L"]:
    """Returns the ranking keys, for each model if decoupled, and 0 in masked rows."""
    x = read_by(d, normalization.apply(x.astype(jnp.float32)))
    f = jax.nn.relu(pre_activations(d, x))
    keys = ranking_keys(f, code_norms(d))
    keys = keys[:, None, :] if keys.ndim == 2 else keys
    # The bits of -0.0 would be the smallest integer, those of NaN the largest.
    return jnp.where(mask[:, None, None] & (keys > 0), keys, 0.0)


@jax.jit
def _count(
    d: Dictionary,
    normalization: Normalization,
    x: Float[Array, "R M D"],
    mask: Bool[Array, " R"],
    pivots: Int[HostOrDevice, "P G"],
) -> Int[Array, "P G"]:
    """Counts the keys at or above each pivot."""
    bits = lax.bitcast_convert_type(_keys(d, normalization, x, mask), jnp.int32)
    return lax.map(
        lambda pivot: jnp.sum(bits >= pivot[None, :, None], axis=(0, 2), dtype=jnp.int32), pivots
    )


@jax.jit
def _gap(
    d: Dictionary,
    normalization: Normalization,
    x: Float[Array, "R M D"],
    mask: Bool[Array, " R"],
    pivots: Int[HostOrDevice, "1 G"],
) -> Float[Array, "2 G"]:
    """Returns the negative of the lowest key that reaches the pivot, and the highest below it."""
    keys = _keys(d, normalization, x, mask)
    kept = lax.bitcast_convert_type(keys, jnp.int32) >= pivots[0][None, :, None]
    lowest = jnp.min(jnp.where(kept, keys, jnp.inf), axis=(0, 2))
    return jnp.stack([-lowest, jnp.max(jnp.where(kept, 0.0, keys), axis=(0, 2))])


@jax.jit
def _measure(d, normalization, x, mask) -> dict[str, Array]:
    x = jnp.where(mask[:, None, None], normalization.apply(x.astype(jnp.float32)), 0.0)
    read, x = read_by(d, x), written_by(d, x)
    f = encode(d, read)
    active = (f > 0) & mask.reshape(-1, *(1,) * (f.ndim - 1))
    error = jnp.where(mask[:, None, None], x - decode(d, f, read), 0.0)
    models = f.shape[1] if f.ndim == 3 else 1
    return {
        "rows": jnp.sum(mask, dtype=jnp.int32),
        "active": jnp.sum(active, dtype=jnp.int32).astype(jnp.float32) / models,
        "fired": jnp.any(active, axis=tuple(range(f.ndim - 1))).astype(jnp.int32),
        "x": jnp.sum(x, axis=0),
        "squares": jnp.sum(jnp.square(x), axis=(0, 2)),
        "residual": jnp.sum(jnp.square(error), axis=(0, 2)),
    }
