"""What the sparse steps of all activations share: scores, lists of active entries, the schedule."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.dictionary import combined_norms
from jaxdiff.dictionaries.loss import reconstruction_loss
from jaxdiff.kernels.bitmap import Entries, by_index
from jaxdiff.kernels.product import product
from jaxdiff.kernels.row_adam import Schedule, Table, update_rows
from jaxdiff.kernels.scores import Held, Scores, Share, stream
from jaxdiff.training.rows import RowState
from jaxdiff.training.state import learning_rate


def scores_of(
    state: RowState,
    x: Float[Array, "B MD"],
    config: DictionaryConfig,
    train: TrainConfig,
    axes: tuple[str, ...],
    held: bool,
) -> Scores:
    """Returns the scores of a batch; arguments are those of `sparse_step`."""
    dtype, (W_enc, b_enc, W_dec, *_) = jnp.dtype(train.dtype), state.tables
    assert W_enc.squares is not None and W_dec.squares is not None
    norms = combined_norms(jnp.sqrt(W_dec.squares), config.code_norm)
    first = lax.axis_index(axes).astype(jnp.int32) * norms.size if axes else jnp.int32(0)
    share, bias = Share(first, axes), b_enc.params[:, 0]
    if not held:
        return stream(x, W_enc.params, bias, norms, W_enc.squares[:, 0], share, dtype)
    pre = product(x.astype(dtype), W_enc.params.astype(dtype))
    return Held(pre, bias, norms, share)


def by_row(
    entries: Entries, values: Float[Array, " N"], rows: int
) -> tuple[Int32[Array, " N"], Float[Array, " N"], Int32[Array, " _"]]:
    """Returns latents, values and offsets of entries by row, as `weighted_gather` takes them.

    Args:
        entries: Entries by latent; indices are rows.
        values: Value of each.
        rows: How many rows there are.
    """
    offsets, slots = by_index(entries, rows)

    def ordered(a):
        # Slots that are none share one number beyond the list.
        return jnp.zeros_like(a).at[slots].set(a, mode="drop", unique_indices=False)

    return ordered(entries.groups), ordered(values), offsets


def reconstruct(
    x: Float[Array, "B M D"],
    guess: Float[Array, "B MD"],
    b_dec: Float[Array, "1 MD"],
    config: DictionaryConfig,
) -> tuple[Float[Array, "B M D"], Float[Array, ""], Float[Array, "B MD"]]:
    """Returns the error, the reconstruction term, and its gradient with respect to the guess."""
    error = x - (guess + b_dec).reshape(x.shape)

    def objective(error):
        return reconstruction_loss(error, squared=config.loss == "mse", cross=config.cross)

    value, pulled = jax.value_and_grad(objective)(error)
    return error, value, -pulled.reshape(guess.shape)


def schedule_of(
    state: RowState,
    squares: Float[Array, ""],
    bias: Float[Array, " MD"],
    share: Share,
    config: DictionaryConfig,
    train: TrainConfig,
) -> tuple[Float[Array, ""], Schedule]:
    """Returns the norm of the gradient, and how this step moves rows.

    Args:
        state: State.
        squares: Squared norm of the gradient of this device's latents.
        bias: Gradient of the decoder bias, which all devices have.
        share: This device's share of the latents.
        config: Settings of the dictionary.
        train: Settings of training.
    """
    norm = jnp.sqrt(share.total(squares) + jnp.sum(jnp.square(bias)))
    return norm, Schedule(
        step=state.step + 1,
        rate=jnp.asarray(learning_rate(config, train)(state.step)),
        scale=jnp.minimum(1.0, train.clip / norm) if train.clip else jnp.ones(()),
        first=share.first,
    )


def move_bias(state: RowState, gradient: Float[Array, " MD"], schedule: Schedule) -> Table:
    """Returns the decoder bias after a step; it moves in every one."""
    just, row = jnp.full(1, state.step), jnp.zeros(1, jnp.int32)
    # All devices have this row, and must round it alike.
    schedule = schedule._replace(first=jnp.int32(0))
    return update_rows(state.tables.b_dec, row, gradient[None], just, schedule)
