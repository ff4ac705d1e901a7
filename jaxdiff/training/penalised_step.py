"""One step of a relu or jumprelu dictionary, whose work follows active entries once they are few.

A penalty decides how many are active. They are counted first: where a list of fixed length holds
them, work follows the list; elsewhere it is products with all latents, as in `train_step`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, UInt32

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.loss import Parts, squares_by_model
from jaxdiff.kernels.bitmap import entries, places
from jaxdiff.kernels.gathered_dots import gathered_dots
from jaxdiff.kernels.product import matmul
from jaxdiff.kernels.row_adam import move, row_adam, row_squares
from jaxdiff.kernels.scores import Scores
from jaxdiff.kernels.segment_sums import segment_sums
from jaxdiff.kernels.weighted_gather import weighted_gather
from jaxdiff.training.listed import by_row, move_bias, reconstruct, schedule_of, scores_of
from jaxdiff.training.penalty_slopes import active, least, pull, slopes
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
    list, which for jumprelu also has the entries in the windows around thresholds: with a wide
    bandwidth these are many. Of what follows the encoder, only products with all latents are
    rounded to `train.dtype`; they take the memory of the dense step, also where none is done.
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


def _thresholds(tables: Tables) -> Float[Array, " L"]:
    if tables.threshold is None:
        return jnp.zeros(tables.b_enc.params.size)
    return jnp.exp(tables.threshold.params[:, 0])


def _reached(given: _Given, config: DictionaryConfig) -> tuple[UInt32[Array, "W L"], Array]:
    """Returns a map of the entries that have a derivative, and whether lists hold them."""
    scores, low = given.scores, least(given.threshold, config)
    shifted = scores._replace(bias=scores.bias - low, norms=jnp.ones_like(low))
    words = shifted.reaching(jnp.float32(jnp.finfo(jnp.float32).tiny))
    over = places(words) > slots_of(scores.rows, low.size)
    return words, scores.share.total(over.astype(jnp.int32)) == 0


def _listed(given: _Given, words, config: DictionaryConfig, train: TrainConfig) -> _Step:
    """Does a step along the list of entries."""
    state, x, rows, scores, threshold, weight = given
    tables, total, (B, M, D) = state.tables, scores.share.total, x.shape
    found = entries(words, slots_of(B, threshold.size))
    latents, offsets, count = found.groups, found.offsets, found.offsets[-1]
    pre = scores.values(found.indices, latents, count)
    valid = jnp.arange(latents.size, dtype=jnp.int32) < count
    a = jax.tree.map(
        lambda e: jnp.where(valid, e, jnp.zeros_like(e)), active(pre, threshold[latents], config)
    )
    guess = total(weighted_gather(tables.W_dec.params, *by_row(found, a.value, B)))
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
    s = slopes(jnp.sum(dots, axis=1), a, *own, config)
    of_entries = jnp.stack([s.norm, a.keep.astype(jnp.float32), *(a.value[:, None] * dots).T])
    norm_slopes, kept, *products = segment_sums(of_entries, offsets)
    pulls = pull(norm_slopes, tables.W_dec.squares, config)

    ones = jnp.ones((B, 1))
    names, sources = ("W_enc", "b_enc", "W_dec"), (rows, ones, slope)
    weights = (s.pre, s.pre, a.value)
    if tables.threshold is not None:
        names, sources = (*names, "threshold"), (*sources, ones)
        weights = (*weights, s.log_threshold)
    # Squares of the sum of the listed gradient and the pull, of which the products are known.
    squares = row_squares(sources, found.indices, weights, offsets)
    both = 2 * jnp.stack(products, axis=1) + pulls * tables.W_dec.squares
    squares = jnp.maximum(squares + jnp.sum(pulls * both), 0.0)
    bias = jnp.sum(slope, axis=0)
    norm, schedule = schedule_of(state, squares, bias, scores.share, config, train)
    moved = row_adam(
        tuple(getattr(tables, name) for name in names),
        state.last,
        sources,
        found.indices,
        weights,
        offsets,
        schedule,
        (None, None, pulls, None)[: len(names)],
    )
    new = dict(zip(names, moved, strict=True))
    return _Step(
        tables=tables._replace(**new, b_dec=move_bias(state, bias, schedule)),
        touched=offsets[1:] > offsets[:-1],
        fired=kept > 0.5,
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
    product = functools.partial(matmul, dtype=jnp.dtype(train.dtype))
    pre = scores._replace(norms=jnp.ones_like(threshold)).by_rows(lambda keys: keys())
    a = active(pre, threshold[None], config)
    guess = total(product(a.value, tables.W_dec.params))
    error, reconstruction, slope = reconstruct(x, guess, tables.b_dec.params, config)
    dots = product(slope, tables.W_dec.params.T)
    s = slopes(dots, a, threshold[None], scores.norms[None], weight / B, config)
    pulls = pull(jnp.sum(s.norm, axis=0), tables.W_dec.squares, config)
    pulled = (tables.W_dec.params.reshape(-1, M, D) * pulls[:, :, None]).reshape(-1, M * D)
    gradient = {
        "W_enc": product(s.pre.T, rows),
        "b_enc": jnp.sum(s.pre, axis=0)[:, None],
        "W_dec": product(a.value.T, slope) + pulled,
    }
    if tables.threshold is not None:
        gradient["threshold"] = jnp.sum(s.log_threshold, axis=0)[:, None]
    squares = jnp.asarray(sum(jnp.sum(jnp.square(g)) for g in gradient.values()))
    bias = jnp.sum(slope, axis=0)
    norm, schedule = schedule_of(state, squares, bias, scores.share, config, train)
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
