"""One training step whose work follows the selected entries; only the encoder's product is dense.

Latents, with their parameters and moments, are split over all devices; each device sees the whole
batch. So what crosses devices is activations (the batch and its reconstruction) and counts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.aux_k import dead_latents
from jaxdiff.dictionaries.dictionary import combined_norms
from jaxdiff.dictionaries.loss import Parts, reconstruction_loss, squares_by_model
from jaxdiff.kernels.bitmap import by_index
from jaxdiff.kernels.encode_marks.xla import product
from jaxdiff.kernels.gathered_dots import gathered_dots
from jaxdiff.kernels.row_adam import Schedule, row_adam, row_squares, update_rows
from jaxdiff.kernels.scores import Held, Scores, Share, stream
from jaxdiff.kernels.select import Selection, select
from jaxdiff.kernels.select_rows import select_rows
from jaxdiff.kernels.weighted_gather import weighted_gather
from jaxdiff.training import revival
from jaxdiff.training.rows import RowState, Tables
from jaxdiff.training.sparsity import annealed_k, l1_weight
from jaxdiff.training.state import learning_rate
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
    scores = _scores(state, rows, config, train, axes, held)
    total = scores.share.total
    codes = _encode(scores, _select(scores, k, state.near, config))
    guess = total(weighted_gather(tables.W_dec.params, *codes.by_row))
    error = x - (guess + tables.b_dec.params).reshape(x.shape)
    squared, cross = config.loss == "mse", config.cross
    objective = functools.partial(reconstruction_loss, squared=squared, cross=cross)
    reconstruction, pulled = jax.value_and_grad(objective)(error)
    gradient = _gradient(tables, codes, rows, -pulled.reshape(rows.shape))

    fired = codes.selection.entries.offsets[1:] > codes.selection.entries.offsets[:-1]
    dead = dead_latents(fired, state.idle, x.shape[0], config) & (config.aux > 0)
    revived = revival.revive(tables.W_dec.params, scores, dead, error, config=config)
    squares = row_squares(gradient.sources, gradient.rows, gradient.weights, gradient.offsets)
    squares = squares + revival.squares(revived, tables.W_dec.params, rows)
    norm = jnp.sqrt(total(squares) + jnp.sum(jnp.square(gradient.b_dec)))
    schedule = Schedule(
        step=state.step + 1,
        rate=jnp.asarray(learning_rate(config, train)(state.step)),
        scale=jnp.minimum(1.0, train.clip / norm) if train.clip else jnp.ones(()),
    )
    tables = _apply(state, gradient, schedule)
    tables = revival.apply(revived, tables, state.last, rows, schedule)
    idle = idle_after(state.idle, fired, x.shape[0])
    new = RowState(
        tables=tables,
        last=jnp.where(fired | revived.dead, schedule.step, state.last),
        step=schedule.step,
        idle=idle,
        l1=state.l1,
        near=codes.selection.threshold,
    )
    parts = _parts(x, error, codes, fired, reconstruction, revived.loss, scores, config)
    dead = total(jnp.sum(idle >= config.dead_after, dtype=jnp.int32))
    l1 = l1_weight(config, state.l1, state.step)
    info = summarize(parts, dead, norm, k, l1, config, passes=codes.selection.passes)
    return new, info


class _Codes(NamedTuple):
    """Selected entries in both orders, with their values.

    `by_row` holds latents, values and offsets, as `weighted_gather` takes them.
    """

    selection: Selection
    values: Float[Array, " N"]
    by_row: tuple[Array, Array, Array]


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


def _scores(state: RowState, x, config, train, axes, held: bool) -> Scores:
    dtype, (W_enc, b_enc, W_dec, _) = jnp.dtype(train.dtype), state.tables
    assert W_enc.squares is not None and W_dec.squares is not None
    norms = combined_norms(jnp.sqrt(W_dec.squares), config.code_norm)
    first = lax.axis_index(axes).astype(jnp.int32) * norms.size if axes else jnp.int32(0)
    share, bias = Share(first, axes), b_enc.params[:, 0]
    if not held:
        return stream(x, W_enc.params, bias, norms, W_enc.squares[:, 0], share, dtype)
    pre = product(x.astype(dtype), W_enc.params.astype(dtype))
    return Held(pre, bias, norms, share)


def _select(scores: Scores, k, near, config: DictionaryConfig) -> Selection:
    most = max(config.k, config.k_start or 0)
    if config.activation == "topk":
        return select_rows(scores, jnp.round(k).astype(jnp.int32), most=round(most))
    slots = round(most * scores.rows)
    # k is float32 here: its product may round to one more than the slots, which are exact.
    n = jnp.minimum(jnp.round(k * scores.rows).astype(jnp.int32), slots)
    return select(scores, n, size=slots, near=near)


def _encode(scores: Scores, selection: Selection) -> _Codes:
    found = selection.entries
    values = scores.values(found.indices, found.groups, found.offsets[-1])
    offsets, slots = by_index(found, scores.rows)

    def by_row(a):
        # Slots that are none share one number beyond the list.
        return jnp.zeros_like(a).at[slots].set(a, mode="drop", unique_indices=False)

    return _Codes(selection, values, (by_row(found.groups), by_row(values), offsets))


def _gradient(tables: Tables, codes: _Codes, x, slope) -> _Gradient:
    found = codes.selection.entries
    slopes = gathered_dots(
        tables.W_dec.params, found.groups, slope, found.indices, found.offsets[-1]
    )
    return _Gradient(
        offsets=found.offsets,
        rows=found.indices,
        sources=(x, jnp.ones((x.shape[0], 1)), slope),
        weights=(slopes, slopes, codes.values),
        b_dec=jnp.sum(slope, axis=0),
    )


def _apply(state: RowState, g: _Gradient, schedule: Schedule) -> Tables:
    """Updates the rows of the selected latents, and the decoder bias."""
    tables, last = state.tables, state.last
    moved = row_adam(tables[:3], last, g.sources, g.rows, g.weights, g.offsets, schedule)
    just = jnp.full(1, state.step)  # The decoder bias moves in every step.
    b_dec = update_rows(tables.b_dec, jnp.zeros(1, jnp.int32), g.b_dec[None], just, schedule)
    return Tables(moved[0], moved[1], moved[2], b_dec)


def _parts(x, error, codes: _Codes, fired, reconstruction, aux, scores: Scores, config) -> Parts:
    found, slots = codes.selection.entries, codes.values.size
    valid = jnp.arange(slots, dtype=jnp.int32) < found.offsets[-1]
    keys = jnp.where(valid, codes.values * scores.norms[found.groups], 0.0)
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
