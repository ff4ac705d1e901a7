"""One step of a relu or jumprelu dictionary, whose work follows active entries once they are few.

A penalty decides how many are active. They are counted first: where a list of fixed length holds
them, work follows the list; elsewhere it is products with all latents, as in `train_step`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, UInt32

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.dictionary import accumulation, combined_norms
from jaxdiff.dictionaries.loss import Parts, squares_by_model
from jaxdiff.dictionaries.penalties import TANH_SCALE
from jaxdiff.kernels.bitmap import entries, places
from jaxdiff.kernels.gathered_dots import gathered_dots
from jaxdiff.kernels.row_adam import move, row_adam, row_squares
from jaxdiff.kernels.scores import Scores
from jaxdiff.kernels.weighted_gather import weighted_gather
from jaxdiff.training.listed import (
    in_both_orders,
    move_bias,
    reconstruct,
    schedule_of,
    scores_of,
)
from jaxdiff.training.rows import RowState, Tables
from jaxdiff.training.sparsity import annealed_k, l1_weight, update_l1
from jaxdiff.training.step import Info, idle_after, summarize

# Pairs of a row and a latent for each slot of the list.
_PAIRS = 32


def slots_of(batch: int, latents: int) -> int:
    """Returns how many active entries the list of a device with so many latents holds."""
    return max(batch * latents // _PAIRS, 1)


def penalised_step(
    state: RowState,
    x: Float[Array, "B M D"],
    *,
    config: DictionaryConfig,
    train: TrainConfig,
    axes: tuple[str, ...] = (),
    held: bool = True,
) -> tuple[RowState, Info]:
    """Does one step of Adam (beta1 = 0) of a relu or jumprelu dictionary on a normalised batch.

    Arguments and results are those of `sparse_step`; `passes` is 1 where the work followed the
    list. For jumprelu that needs thresholds above half the bandwidth: below, the window around a
    threshold holds most entries.
    """
    rows = x.reshape(len(x), -1)
    scores = scores_of(state, rows, config, train, axes, held)
    weight = l1_weight(config, state.l1, state.step)
    given = _Given(state, x, rows, scores, _thresholds(state.tables), weight)
    words, few = _reached(given, config)
    step = lax.cond(
        few,
        lambda: _listed(given, words, config, train),
        lambda: _everywhere(given, config, train),
    )
    idle = idle_after(state.idle, step.fired, len(x))
    new = RowState(
        tables=step.tables,
        last=jnp.where(step.touched, state.step + 1, state.last),
        step=state.step + 1,
        idle=idle,
        l1=update_l1(state.l1, step.l0, state.step, config=config, train=train),
        near=state.near,
    )
    residual, about_mean = squares_by_model(step.error, x)
    parts = Parts(
        loss=step.reconstruction + weight * step.penalty,
        reconstruction=step.reconstruction,
        sparsity=step.penalty,
        aux=jnp.zeros(()),
        l0=step.l0,
        fired=step.fired,
        residual=residual,
        total=about_mean,
    )
    dead = scores.share.total(jnp.sum(idle >= config.dead_after, dtype=jnp.int32))
    k, passes = annealed_k(config, state.step), few.astype(jnp.int32)
    return new, summarize(parts, dead, step.norm, k, weight, config, passes=passes)


class _Given(NamedTuple):
    """What a step starts from; rows are x with models joined."""

    state: RowState
    x: Float[Array, "B M D"]
    rows: Float[Array, "B MD"]
    scores: Scores
    threshold: Float[Array, " L"]
    weight: Float[Array, ""]


class _Step(NamedTuple):
    """What a step did; scalars are over all devices."""

    tables: Tables
    touched: Bool[Array, " L"]
    fired: Bool[Array, " L"]
    error: Float[Array, "B M D"]
    reconstruction: Float[Array, ""]
    penalty: Float[Array, ""]
    l0: Float[Array, ""]
    norm: Float[Array, ""]


class _Active(NamedTuple):
    """Entries: their value, whether they are active, and the density of the threshold's window."""

    value: Array
    keep: Array
    window: Array


class _Slopes(NamedTuple):
    """The penalty of entries, and the loss's derivatives, by entry.

    Those of `norm` are with respect to the code norm, of `log_threshold` to the threshold's
    logarithm.
    """

    penalty: Array
    pre: Array
    norm: Array
    log_threshold: Array


def _thresholds(tables: Tables) -> Float[Array, " L"]:
    if tables.threshold is None:
        return jnp.zeros(tables.b_enc.params.size)
    return jnp.exp(tables.threshold.params[:, 0])


def _reached(given: _Given, config: DictionaryConfig) -> tuple[UInt32[Array, "W L"], Array]:
    """Returns a map of the entries that have a derivative, and whether lists hold them."""
    scores, total = given.scores, given.scores.share.total
    low, pivot = jnp.ones_like(given.threshold), jnp.float32(jnp.finfo(jnp.float32).tiny)
    holds = jnp.bool_(True)
    if config.activation == "jumprelu":
        low, pivot = given.threshold - config.bandwidth / 2, jnp.float32(1)
        holds = jnp.all(low > 0)
    words = scores._replace(norms=1 / jnp.where(low > 0, low, 1.0)).reaching(pivot)
    holds &= places(words) <= slots_of(scores.rows, low.size)
    return words, total((~holds).astype(jnp.int32)) == 0


def _active(pre, threshold, config: DictionaryConfig) -> _Active:
    if config.activation == "relu":
        return _Active(jnp.maximum(pre, 0.0), pre > 0, jnp.zeros_like(pre))
    keep = (pre > 0) & (pre > threshold)
    near = jnp.abs(pre - threshold) < config.bandwidth / 2
    return _Active(jnp.where(keep, pre, 0.0), keep, jnp.where(near, 1 / config.bandwidth, 0.0))


def _slopes(dot, a: _Active, threshold, norms, weight, config: DictionaryConfig) -> _Slopes:
    """Returns the derivatives of the loss; see `dictionaries.penalties` for the rules.

    Args:
        dot: Derivative of the reconstruction term with respect to the values.
        a: Entries.
        threshold: Their thresholds.
        norms: Their code norms.
        weight: Weight of the penalty of one entry.
        config: Settings of the dictionary.
    """
    direct = 0.0
    if config.activation == "relu":
        penalty, rise = a.value * norms, 1.0
    elif config.penalty == "tanh":
        penalty = jnp.tanh(TANH_SCALE * a.value * norms)
        rise = TANH_SCALE * (1 - jnp.square(penalty))
    else:
        penalty, rise, direct = a.keep.astype(jnp.float32), 0.0, weight
    value = dot + weight * rise * norms
    log_threshold = -threshold * a.window * (threshold * value + direct)
    pre = jnp.where(a.keep, value, 0.0)
    return _Slopes(penalty, pre, weight * rise * a.value, log_threshold)


def _pull(norm_slopes: Float[Array, " L"], tables: Tables, config: DictionaryConfig):
    """Returns what each part of a decoder row is pulled by, as a factor of the part, [L, M]."""
    norms = jnp.sqrt(tables.W_dec.squares)

    def weighted(norms):
        return jnp.sum(norm_slopes * combined_norms(norms, config.code_norm))

    slopes = jax.grad(weighted)(norms)
    return jnp.where(norms > 0, slopes / jnp.where(norms > 0, norms, 1.0), 0.0)


def _listed(given: _Given, words, config: DictionaryConfig, train: TrainConfig) -> _Step:
    """Does a step along the list of entries."""
    state, x, rows, scores, threshold, weight = given
    tables, total, (B, M, D) = state.tables, scores.share.total, x.shape
    found = entries(words, slots_of(B, threshold.size))
    latents, offsets, count = found.groups, found.offsets, found.offsets[-1]
    here = jnp.arange(latents.size, dtype=jnp.int32)
    pre = jnp.where(here < count, scores.values(found.indices, latents, count), 0.0)
    a = _active(pre, threshold[latents], config)
    guess = total(weighted_gather(tables.W_dec.params, *in_both_orders(found, a.value, B).by_row))
    error, reconstruction, slope = reconstruct(x, guess, tables.b_dec.params, config)

    def by_model(index):
        return (index[:, None] * M + jnp.arange(M, dtype=jnp.int32)[None, :]).reshape(-1)

    dots = gathered_dots(
        tables.W_dec.params.reshape(-1, D),
        by_model(latents),
        slope.reshape(-1, D),
        by_model(found.indices),
        M * count,
    ).reshape(-1, M)
    own = threshold[latents], scores.norms[latents], weight / B
    s = _slopes(jnp.sum(dots, axis=1), a, *own, config)
    of_entries = jnp.stack([s.norm, a.keep.astype(jnp.float32)], axis=1)
    of_entries = jnp.concatenate([of_entries, a.value[:, None] * dots], axis=1)
    sums = weighted_gather(of_entries, here, jnp.ones(here.size), offsets)
    pull = _pull(sums[:, 0], tables, config)

    ones = jnp.ones((B, 1))
    names, sources = ("W_enc", "b_enc", "W_dec"), (rows, ones, slope)
    weights = (s.pre, s.pre, a.value)
    if tables.threshold is not None:
        names, sources = (*names, "threshold"), (*sources, ones)
        weights = (*weights, s.log_threshold)
    # The square of a sum of the listed gradient and the pull, whose product are the sums by model.
    squares = row_squares(sources, found.indices, weights, offsets)
    squares += jnp.sum(pull * (2 * sums[:, 2:] + pull * tables.W_dec.squares))
    bias = jnp.sum(slope, axis=0)
    norm = jnp.sqrt(total(squares) + jnp.sum(jnp.square(bias)))
    schedule = schedule_of(state, norm, config, train)
    moved = row_adam(
        tuple(getattr(tables, name) for name in names),
        state.last,
        sources,
        found.indices,
        weights,
        offsets,
        schedule,
        (None, None, pull, None)[: len(names)],
    )
    new = dict(zip(names, moved, strict=True))
    return _Step(
        tables=tables._replace(**new, b_dec=move_bias(state, bias, schedule)),
        touched=offsets[1:] > offsets[:-1],
        fired=sums[:, 1] > 0,
        error=error,
        reconstruction=reconstruction,
        penalty=total(jnp.sum(s.penalty)) / B,
        l0=total(jnp.sum(a.keep, dtype=jnp.int32)).astype(jnp.float32) / B,
        norm=norm,
    )


def _everywhere(given: _Given, config: DictionaryConfig, train: TrainConfig) -> _Step:
    """Does a step of all latents, in products of [B, L] arrays."""
    state, x, rows, scores, threshold, weight = given
    tables, total, (B, M, D) = state.tables, scores.share.total, x.shape
    dtype = jnp.dtype(train.dtype)

    def product(a, b):
        return jnp.matmul(a.astype(dtype), b.astype(dtype), **accumulation(dtype))

    pre = scores._replace(norms=jnp.ones_like(threshold)).by_rows(lambda keys: keys())
    a = _active(pre, threshold[None], config)
    guess = total(product(a.value, tables.W_dec.params))
    error, reconstruction, slope = reconstruct(x, guess, tables.b_dec.params, config)
    dots = product(slope, tables.W_dec.params.T)
    s = _slopes(dots, a, threshold[None], scores.norms[None], weight / B, config)
    pull = _pull(jnp.sum(s.norm, axis=0), tables, config)
    pulled = (tables.W_dec.params.reshape(-1, M, D) * pull[:, :, None]).reshape(-1, M * D)
    gradient = {
        "W_enc": product(s.pre.T, rows),
        "b_enc": jnp.sum(s.pre, axis=0)[:, None],
        "W_dec": product(a.value.T, slope) + pulled,
    }
    if tables.threshold is not None:
        gradient["threshold"] = jnp.sum(s.log_threshold, axis=0)[:, None]
    squares = sum(jnp.sum(jnp.square(g)) for g in gradient.values())
    bias = jnp.sum(slope, axis=0)
    norm = jnp.sqrt(total(jnp.asarray(squares)) + jnp.sum(jnp.square(bias)))
    schedule = schedule_of(state, norm, config, train)
    since = schedule.step - state.last
    new = {name: move(getattr(tables, name), g, since, schedule) for name, g in gradient.items()}
    return _Step(
        tables=tables._replace(**new, b_dec=move_bias(state, bias, schedule)),
        touched=jnp.ones_like(state.last, bool),
        fired=jnp.any(a.keep, axis=0),
        error=error,
        reconstruction=reconstruction,
        penalty=total(jnp.sum(s.penalty)) / B,
        l0=total(jnp.sum(a.keep, dtype=jnp.int32)).astype(jnp.float32) / B,
        norm=norm,
    )
