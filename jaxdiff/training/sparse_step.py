"""One training step whose work follows the selected entries; only the encoder's product is dense.

Latents, with their parameters and moments, are split over all devices; each device sees the whole
batch. So what crosses devices is activations (the batch and its reconstruction) and counts.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.aux_k import dead_latents
from jaxdiff.dictionaries.loss import Parts, squares_by_model
from jaxdiff.kernels.gathered_dots import gathered_dots
from jaxdiff.kernels.row_adam import Schedule, row_adam, row_squares
from jaxdiff.kernels.scores import Scores
from jaxdiff.kernels.select import Selection, select
from jaxdiff.kernels.select_rows import select_rows
from jaxdiff.kernels.weighted_gather import weighted_gather
from jaxdiff.training import revival
from jaxdiff.training.listed import by_row, move_bias, reconstruct, schedule_of, scores_of
from jaxdiff.training.rows import RowState, Tables
from jaxdiff.training.sparsity import annealed_k, l1_weight
from jaxdiff.training.step import Info, idle_after, summarize


def sparse_step(
    state: RowState,
    x: Float[Array, "B M D"],
    *,
    config: DictionaryConfig,
    train: TrainConfig,
    axes: tuple[str, ...] = (),
    held: bool = True,
) -> tuple[RowState, Info]:
    """Does one step of Adam (beta1 = 0) of a batch_topk or topk dictionary on a normalised batch.

    It is the step of `train_step` with the same optimizer, up to the order of sums; with
    `train.dtype` bfloat16 only the encoder's product is in it.

    Args:
        state: State; on a mesh, this device's latents.
        x: The whole batch.
        config: Settings of the dictionary.
        train: Settings of training.
        axes: Mesh axes that the latents are split over.
        held: Whether the encoder's product is held as an array, [B, L] on this device, or taken
            chunk by chunk; see `kernels.scores`.

    Returns:
        The next state, and what is logged.
    """
    tables, k = state.tables, annealed_k(config, state.step)
    rows = x.reshape(x.shape[0], -1)
    scores = scores_of(state, rows, config, train, axes, held)
    total = scores.share.total
    selection = _select(scores, k, state.near, config)
    found = selection.entries
    codes = by_row(found, selection.values, x.shape[0])
    guess = total(weighted_gather(tables.W_dec.params, *codes))
    error, reconstruction, slope = reconstruct(x, guess, tables.b_dec.params, config)
    gradient = _gradient(tables, selection, rows, slope)

    fired = found.offsets[1:] > found.offsets[:-1]
    dead = dead_latents(fired, state.idle, x.shape[0], config) & (config.aux > 0)
    revived = revival.revive(tables.W_dec.params, scores, dead, error, config=config)
    squares = row_squares(gradient.sources, gradient.rows, gradient.weights, gradient.offsets)
    squares = squares + revival.squares(revived, tables.W_dec.params, rows)
    norm, schedule = schedule_of(state, squares, gradient.b_dec, scores.share, config, train)
    tables = _apply(state, gradient, schedule)
    tables = revival.apply(revived, tables, state.last, rows, schedule)
    idle = idle_after(state.idle, fired, x.shape[0])
    new = RowState(
        tables=tables,
        last=jnp.where(fired | revived.dead, schedule.step, state.last),
        step=schedule.step,
        idle=idle,
        l1=state.l1,
        near=selection.threshold,
    )
    parts = _parts(x, error, selection, fired, reconstruction, revived.loss, scores, config)
    dead = total(jnp.sum(idle >= config.dead_after, dtype=jnp.int32))
    l1 = l1_weight(config, state.l1, state.step)
    return new, summarize(parts, dead, norm, k, l1, config, passes=selection.passes)


class _Gradient(NamedTuple):
    """The gradient of the reconstruction, as weighted rows of sources.

    Slot i adds `weights[i] * source[row]` to its latent's row of each table: encoder, encoder
    bias, decoder.
    """

    offsets: Array
    rows: Array
    sources: tuple[Array, Array, Array]
    weights: tuple[Array, Array, Array]
    b_dec: Float[Array, " MD"]


def _select(scores: Scores, k, near, config: DictionaryConfig) -> Selection:
    most = max(config.k, config.k_start or 0)
    if config.activation == "topk":
        return select_rows(scores, jnp.round(k).astype(jnp.int32), most=round(most))
    slots = round(most * scores.rows)
    # k is float32 here: its product may round to one more than the slots, which are exact.
    n = jnp.minimum(jnp.round(k * scores.rows).astype(jnp.int32), slots)
    return select(scores, n, size=slots, near=near)


def _gradient(tables: Tables, selection: Selection, x, slope) -> _Gradient:
    found = selection.entries
    slopes = gathered_dots(
        tables.W_dec.params, found.groups, slope, found.indices, found.offsets[-1]
    )
    return _Gradient(
        offsets=found.offsets,
        rows=found.indices,
        sources=(x, jnp.ones((x.shape[0], 1)), slope),
        weights=(slopes, slopes, selection.values),
        b_dec=jnp.sum(slope, axis=0),
    )


def _apply(state: RowState, g: _Gradient, schedule: Schedule) -> Tables:
    """Updates the rows of the selected latents, and the decoder bias."""
    tables, last = state.tables, state.last
    moved = row_adam(tables[:3], last, g.sources, g.rows, g.weights, g.offsets, schedule)
    return Tables(moved[0], moved[1], moved[2], move_bias(state, g.b_dec, schedule))


def _parts(
    x, error, selection: Selection, fired, reconstruction, aux, scores: Scores, config
) -> Parts:
    found, slots = selection.entries, selection.values.size
    valid = jnp.arange(slots, dtype=jnp.int32) < found.offsets[-1]
    keys = jnp.where(valid, selection.values * scores.norms[found.groups], 0.0)
    residual, total = squares_by_model(error, x)
    return Parts(
        loss=reconstruction + config.aux * aux,
        reconstruction=reconstruction,
        sparsity=scores.share.total(jnp.sum(keys)) / x.shape[0],
        aux=aux,
        l0=scores.share.total(found.offsets[-1]).astype(jnp.float32) / x.shape[0],
        fired=fired,
        residual=residual,
        total=total,
    )
