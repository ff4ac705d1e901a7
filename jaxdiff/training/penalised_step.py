"""One step of a relu or jumprelu dictionary, whose work follows active entries once they are few.

A penalty decides how many are active. They are counted first: where a list of fixed length holds
them, work follows the list; elsewhere it is products with all latents, as in `train_step`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, PyTree, UInt32

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.loss import Parts, squares_by_model
from jaxdiff.kernels.bitmap import entries, places
from jaxdiff.kernels.gathered_dots import gathered_dots
from jaxdiff.kernels.product import matmul
from jaxdiff.kernels.row_adam import move, row_adam, row_squares
from jaxdiff.kernels.scores import Scores, rows_from
from jaxdiff.kernels.segment_sums import segment_sums
from jaxdiff.kernels.weighted_gather import weighted_gather
from jaxdiff.training.listed import by_row, move_bias, reconstruct, schedule_of, scores_of
from jaxdiff.training.penalty_slopes import active, least, pull, slopes
from jaxdiff.training.rows import RowState, Tables
from jaxdiff.training.sparsity import annealed_k, l1_weight, update_l1
from jaxdiff.training.step import Info, idle_after, summarize

# Pairs of a row and a latent for each slot of the list.
_PAIRS = 32
# Pairs in a part of the latents, where products are taken with all of them.
PART = 1 << 20


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
    rounded to `train.dtype`.
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

    def dots_of(model):
        # Zeros in place of other models: on TPUs a table cut by model would be a copy of it.
        own = jnp.where(jnp.arange(M * D)[None] // D == model, slope, 0.0)
        return gathered_dots(tables.W_dec.params, latents, own, found.indices, count)

    dots = jnp.stack([dots_of(model) for model in range(M)], axis=1)
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


class _Found(NamedTuple):
    """What is found part by part of the latents: gradients of tables, and of the penalty."""

    gradient: dict[str, Float[Array, "L _"]]
    penalty: Float[Array, ""]
    active: Int32[Array, ""]
    fired: Bool[Array, " L"]


def _everywhere(given: _Given, config: DictionaryConfig, train: TrainConfig) -> _Step:
    """Does a step of all latents, in products with some of them at a time."""
    state, x, rows, scores, threshold, weight = given
    total, (B, M, D), L = scores.share.total, x.shape, threshold.size
    tables = {n: table for n, table in state.tables._asdict().items() if table and n != "b_dec"}
    product = functools.partial(matmul, dtype=jnp.dtype(train.dtype))

    def part_of(first, size):
        W_dec = tables["W_dec"]
        read = W_dec.params, W_dec.squares, threshold, scores.norms
        weights, squares, low, norms = rows_from(first, size, read)
        return weights, squares, low, norms, active(scores.part(first, size), low[None], config)

    def add(guess, first, size):
        W_dec, *_, a = part_of(first, size)
        return guess + product(a.value, W_dec)

    guess = total(_fold(add, jnp.zeros_like(rows), B, L))
    error, reconstruction, slope = reconstruct(x, guess, state.tables.b_dec.params, config)

    def look(found: _Found, first, size):
        W_dec, own_squares, low, norms, a = part_of(first, size)
        dots = product(slope, W_dec.T)
        s = slopes(dots, a, low[None], norms[None], weight / B, config)
        pulls = pull(jnp.sum(s.norm, axis=0), own_squares, config)
        pulled = (W_dec.reshape(-1, M, D) * pulls[:, :, None]).reshape(-1, M * D)
        gradient = {
            "W_enc": product(s.pre.T, rows),
            "b_enc": jnp.sum(s.pre, axis=0)[:, None],
            "W_dec": product(a.value.T, slope) + pulled,
            "threshold": jnp.sum(s.log_threshold, axis=0)[:, None],
        }
        put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=first, axis=0)
        return _Found(
            gradient={name: put(all, gradient[name]) for name, all in found.gradient.items()},
            penalty=found.penalty + jnp.sum(s.penalty),
            active=found.active + jnp.sum(a.keep, dtype=jnp.int32),
            fired=put(found.fired, jnp.any(a.keep, axis=0)),
        )

    none = {name: jnp.zeros_like(table.params) for name, table in tables.items()}
    start = _Found(none, jnp.zeros(()), jnp.int32(0), jnp.zeros(L, bool))
    found = _fold(look, start, B, L)
    squares = jnp.asarray(sum(jnp.sum(jnp.square(g)) for g in found.gradient.values()))
    bias = jnp.sum(slope, axis=0)
    norm, schedule = schedule_of(state, squares, bias, scores.share, config, train)
    since = schedule.step - state.last
    new = {name: move(tables[name], g, since, schedule) for name, g in found.gradient.items()}
    return _Step(
        tables=state.tables._replace(**new, b_dec=move_bias(state, bias, schedule)),
        touched=jnp.ones_like(state.last, bool),
        fired=found.fired,
        error=error,
        reconstruction=reconstruction,
        penalty=total(found.penalty) / B,
        l0=total(found.active).astype(jnp.float32) / B,
        norm=norm,
    )


def _fold(function: Callable, start: PyTree, rows: int, latents: int) -> PyTree:
    """Folds over parts of the latents: `function(state, first, size)`."""
    size = min(max(PART // rows, 1), latents)
    end = lax.fori_loop(0, latents // size, lambda i, s: function(s, i * size, size), start)
    rest = latents % size
    return function(end, jnp.int32(latents - rest), rest) if rest else end
