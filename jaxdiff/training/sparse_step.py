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
from jaxdiff.dictionaries.dictionary import accumulation, code_norms
from jaxdiff.dictionaries.loss import Parts, reconstruction_loss
from jaxdiff.kernels.bitmap import Entries, entries, pack_places
from jaxdiff.kernels.gathered_dots import gathered_dots
from jaxdiff.kernels.row_adam import row_adam
from jaxdiff.kernels.row_adam.rule import adam
from jaxdiff.kernels.segments import fold_segments, weighted_sum
from jaxdiff.kernels.select import Scores, Selection, select
from jaxdiff.kernels.weighted_gather import weighted_gather
from jaxdiff.training import revival
from jaxdiff.training.rows import Rows, RowState, Schedule, to_dictionary
from jaxdiff.training.sparsity import annealed_k
from jaxdiff.training.state import learning_rate
from jaxdiff.training.step import Info, idle_after, summarize


def sparse_step(
    state: RowState,
    x: Float[Array, "B M D"],
    *,
    config: DictionaryConfig,
    train: TrainConfig,
    axes: tuple[str, ...] = (),
) -> tuple[RowState, Info]:
    """Does one step of Adam (beta1 = 0) of a batch_topk dictionary on a normalised batch.

    It is the step of `train_step` with the same optimizer, up to the order of sums.

    Args:
        state: State; on a mesh, this device's latents.
        x: The whole batch.
        config: Settings of the dictionary.
        train: Settings of training.
        axes: Mesh axes that the latents are split over.

    Returns:
        The next state, and what is logged.
    """
    params, k = state.params, annealed_k(config, state.step)
    rows = x.reshape(x.shape[0], -1)
    scores = _scores(params, rows, config, train, x.shape[1:], axes)
    codes = _encode(scores, state, jnp.round(k * x.shape[0]), _slots(config, x.shape[0]))
    guess = scores.total(weighted_gather(params.W_dec, *codes.by_row))
    error = x - (guess + params.b_dec[None, :]).reshape(x.shape)
    objective = functools.partial(reconstruction_loss, squared=config.loss == "mse")
    reconstruction, pulled = jax.value_and_grad(objective)(error)
    gradient = _gradient(params, codes, rows, -pulled.reshape(rows.shape))

    fired = codes.selection.entries.offsets[1:] > codes.selection.entries.offsets[:-1]
    dead = ~fired & (state.idle + x.shape[0] >= config.dead_after)
    revived = revival.revive(params.W_dec, scores, dead, error, config=config)
    squares = _squares(gradient) + revival.squares(revived, params.W_dec, rows)
    norm = jnp.sqrt(scores.total(squares) + jnp.sum(jnp.square(gradient.b_dec)))
    schedule = Schedule(
        step=state.step + 1,
        rate=learning_rate(config, train)(state.step),
        scale=jnp.minimum(1.0, train.clip / norm) if train.clip else jnp.ones(()),
    )
    params, moments = _apply(state, gradient, fired, schedule)
    params, moments = revival.apply(revived, params, moments, state.last, rows, schedule)
    idle = idle_after(state.idle, fired, x.shape[0])
    new = RowState(
        params=params,
        moments=moments,
        last=jnp.where(fired | revived.dead, schedule.step, state.last),
        step=schedule.step,
        idle=idle,
        l1=state.l1,
        near=codes.selection.threshold,
    )
    parts = _parts(x, error, codes, fired, reconstruction, revived.loss, scores, config)
    dead = scores.total(jnp.sum(idle >= config.dead_after, dtype=jnp.int32))
    l1 = jnp.exp(state.l1.log_weight)
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
    """The gradient of the reconstruction, as weights of rows.

    Slot i adds `values[i] * slope[row]` to its latent's decoder, `slopes[i] * x[row]` to its
    encoder and `slopes[i]` to its bias.
    """

    found: Entries
    values: Float[Array, " N"]
    slopes: Float[Array, " N"]
    slope: Float[Array, "B MD"]
    x: Float[Array, "B MD"]
    b_dec: Float[Array, " MD"]


def _slots(config: DictionaryConfig, batch: int) -> int:
    """Returns the most entries that a step can select."""
    return round(max(config.k, config.k_start or 0) * batch)


def _scores(params: Rows, x, config, train, shape, axes) -> Scores:
    dtype = jnp.dtype(train.dtype)
    pre = lax.dot_general(
        x.astype(dtype),
        params.W_enc.astype(dtype),
        (((1,), (1,)), ((), ())),
        **accumulation(dtype),
    )
    norms = code_norms(to_dictionary(params, config, shape))
    first = lax.axis_index(axes).astype(jnp.int32) * norms.size if axes else jnp.int32(0)
    return Scores(pre, params.b_enc, norms, first, axes)


def _encode(scores: Scores, state: RowState, n, slots: int) -> _Codes:
    selection = select(scores, n.astype(jnp.int32), size=slots, near=state.near)
    found = selection.entries
    values = scores.values(found.indices, found.groups)
    shape = scores.pre.shape
    map_of_rows = pack_places(found.indices, found.groups, found.offsets[-1], shape[::-1])
    by_row = entries(map_of_rows, slots)
    row_values = scores.values(by_row.groups, by_row.indices)
    return _Codes(selection, values, (by_row.indices, row_values, by_row.offsets))


def _gradient(params: Rows, codes: _Codes, x, slope) -> _Gradient:
    found = codes.selection.entries
    slopes = gathered_dots(params.W_dec, found.groups, slope, found.indices, found.offsets[-1])
    return _Gradient(found, codes.values, slopes, slope, x, jnp.sum(slope, axis=0))


def _squares(g: _Gradient) -> Float[Array, ""]:
    """Returns the squared norm of the gradient on this device, without b_dec."""

    def sums(_, slots, valid):
        rows = g.found.indices[slots]
        values, slopes = (jnp.where(valid, w[slots], 0.0) for w in (g.values, g.slopes))
        return (
            weighted_sum(g.slope, rows, values),
            weighted_sum(g.x, rows, slopes),
            jnp.sum(slopes, axis=1),
        )

    def add(total, _, gradients):
        return total + sum(jnp.sum(jnp.square(part)) for part in gradients)

    return fold_segments(g.found.offsets, sums, add, jnp.zeros(()))


def _apply(state: RowState, g: _Gradient, fired, schedule: Schedule) -> tuple[Rows, Rows]:
    """Updates the rows of the selected latents, and the decoder bias."""
    params, moments, found = state.params, state.moments, g.found

    def rows(name, source, weights):
        return row_adam(
            getattr(params, name),
            getattr(moments, name),
            state.last,
            source,
            found.indices,
            weights,
            found.offsets,
            **schedule._asdict(),
        )

    def elements(name, gradient, since):
        return adam(
            getattr(params, name),
            getattr(moments, name),
            schedule.scale * gradient,
            since=since,
            step=schedule.step,
            rate=schedule.rate,
        )

    since = schedule.step - state.last
    b_enc, b_moment = elements("b_enc", _sums(found, g.slopes), since)
    b_enc = jnp.where(fired, b_enc, params.b_enc)
    b_moment = jnp.where(fired, b_moment, moments.b_enc.astype(jnp.float32))
    updated = {
        "W_enc": rows("W_enc", g.x, g.slopes),
        "b_enc": (b_enc, b_moment),
        "W_dec": rows("W_dec", g.slope, g.values),
        "b_dec": elements("b_dec", g.b_dec, jnp.int32(1)),
    }
    new = Rows(**{name: pair[0] for name, pair in updated.items()})
    dtypes = {name: pair[1].astype(moments.b_enc.dtype) for name, pair in updated.items()}
    return new, Rows(**dtypes)


def _sums(found: Entries, values) -> Float[Array, " L"]:
    """Returns the sum of each latent's values."""

    def sums(_, slots, valid):
        return jnp.sum(jnp.where(valid, values[slots], 0.0), axis=1)

    def put(out, groups, rows):
        return out.at[groups].set(rows, mode="drop", unique_indices=True)

    out = jnp.zeros(found.offsets.size - 1)
    return fold_segments(found.offsets, sums, put, out)


def _parts(x, error, codes: _Codes, fired, reconstruction, aux, scores: Scores, config) -> Parts:
    found, slots = codes.selection.entries, codes.values.size
    valid = jnp.arange(slots, dtype=jnp.int32) < found.offsets[-1]
    keys = jnp.where(valid, codes.values * scores.norms[found.groups], 0.0)
    return Parts(
        loss=reconstruction + config.aux * aux,
        reconstruction=reconstruction,
        sparsity=scores.total(jnp.sum(keys)) / x.shape[0],
        aux=aux,
        l0=scores.total(found.offsets[-1]).astype(jnp.float32) / x.shape[0],
        fired=fired,
        residual=jnp.sum(jnp.square(error), axis=(0, 2)),
        total=jnp.sum(jnp.square(x - jnp.mean(x, axis=0, keepdims=True)), axis=(0, 2)),
    )
