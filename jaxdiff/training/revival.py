"""AuxK of the sparse step: dead latents explain the error, in dense products over them alone.

Dead latents are few or get many entries each (half the model's width for every row), so their work
is matrix products over blocks of dead latents. They did not fire, hence no row is updated twice.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from jaxdiff.config import DictionaryConfig
from jaxdiff.dictionaries.aux_k import most_used, unexplained
from jaxdiff.kernels.bisect import number
from jaxdiff.kernels.cut_rows import cut_rows
from jaxdiff.kernels.product import matmul
from jaxdiff.kernels.row_adam import Schedule, update_rows
from jaxdiff.kernels.scores import LOWEST, Scores
from jaxdiff.training.rows import Tables

# Dead latents of a block.
_BLOCK = 256

State = TypeVar("State")


class Revived(NamedTuple):
    """What the dead latents did.

    Attributes:
        loss: AuxK term, not weighted.
        slope: Gradient of the weighted term with respect to the dead latents' reconstruction.
        dead: True for dead latents of this device.
        listed: The dead latents, then L.
        cut: As `cut_rows` returns it.
        scores: Scores of this device's latents.
    """

    loss: Float[Array, ""]
    slope: Float[Array, "B MD"]
    dead: Bool[Array, " L"]
    listed: Int32[Array, " N"]
    cut: tuple[Int32[Array, " B"], Int32[Array, " B"]]
    scores: Scores


def revive(
    W_dec: Float[Array, "L MD"],
    scores: Scores,
    dead: Bool[Array, " L"],
    error: Float[Array, "B M D"],
    *,
    config: DictionaryConfig,
) -> Revived:
    """Lets the strongest dead latents of each row explain the error.

    Args:
        W_dec: Decoder.
        scores: Scores of this device's latents.
        dead: Which of them are dead.
        error: Error of the reconstruction; a constant of this term.
        config: Settings of the dictionary.
    """
    count = scores.share.total(jnp.sum(dead, dtype=jnp.int32))
    nobody = Revived(
        loss=jnp.zeros(()),
        slope=jnp.zeros((error.shape[0], error.size // error.shape[0])),
        dead=dead,
        listed=jnp.full(dead.size + _BLOCK, dead.size, jnp.int32),
        cut=(jnp.full(error.shape[0], LOWEST, jnp.int32), jnp.full(error.shape[0], 2**30)),
        scores=scores,
    )
    parts = lax.cond(
        count > 0,
        lambda: _revive(nobody, W_dec, error, count, config),
        lambda: nobody[:2] + nobody[3:5],
    )
    return nobody._replace(loss=parts[0], slope=parts[1], listed=parts[2], cut=parts[3])


def _revive(start: Revived, W_dec, error, count, config: DictionaryConfig):
    """Returns loss, slope, listed and cut."""
    limit = most_used(config, error.shape[-1])
    dead, scores = start.dead, start.scores
    cut = lax.cond(count > limit, lambda: cut_rows(scores, dead, limit), lambda: start.cut)
    # Counted, not sorted: sorting takes TPU compilers several seconds.
    place = jnp.where(dead, jnp.cumsum(dead, dtype=jnp.int32) - 1, start.listed.size)
    numbers = jnp.arange(dead.size, dtype=jnp.int32)
    listed = start.listed.at[place].set(numbers, mode="drop")
    start = start._replace(listed=listed, cut=cut)
    rows = error.reshape(start.slope.shape)

    def decode(total, latents):
        return total + matmul(_codes(start, scores, latents), W_dec[latents], jnp.float32)

    guess = scores.share.total(_fold(start, decode, jnp.zeros_like(rows)))
    loss, slope = jax.value_and_grad(unexplained, argnums=1)(error, guess.reshape(error.shape))
    return loss, config.aux * slope.reshape(rows.shape), listed, cut


def squares(
    revived: Revived, W_dec: Float[Array, "L MD"], x: Float[Array, "B MD"]
) -> Float[Array, ""]:
    """Returns the squared norm of the dead latents' gradient, on this device."""

    def add(total, latents):
        codes = _codes(revived, revived.scores, latents)
        gradient = _gradient(revived, W_dec, x, latents, codes)
        return total + sum(jnp.sum(jnp.square(g)) for g in gradient)

    return _fold(revived, add, jnp.zeros(()))


def apply(
    revived: Revived,
    tables: Tables,
    last: Int32[Array, " L"],
    x: Float[Array, "B MD"],
    schedule: Schedule,
) -> Tables:
    """Updates the dead latents' rows."""

    def update(tables, latents):
        # Of the tables as they are: rows of dead latents have not moved before their own block, and
        # the old encoder would be kept as a copy.
        scores = revived.scores.with_encoder(tables.W_enc.params, tables.b_enc.params[:, 0])
        codes = _codes(revived, scores, latents)
        W_enc, b_enc, W_dec = _gradient(revived, tables.W_dec.params, x, latents, codes)

        def move(table, rows):
            return update_rows(table, latents, rows, last, schedule)

        return tables._replace(
            W_enc=move(tables.W_enc, W_enc),
            b_enc=move(tables.b_enc, b_enc[:, None]),
            W_dec=move(tables.W_dec, W_dec),
        )

    return _fold(revived, update, tables)


def _fold(revived: Revived, take: Callable, state: State) -> State:
    """Folds `take(state, latents)` over blocks of dead latents; latent L is none."""
    count = jnp.sum(revived.dead, dtype=jnp.int32)

    def step(carry):
        at, state = carry
        latents = lax.dynamic_slice(revived.listed, (at,), (_BLOCK,))
        return at + _BLOCK, take(state, latents)

    return lax.while_loop(lambda carry: carry[0] < count, step, (jnp.int32(0), state))[1]


def _codes(revived: Revived, scores: Scores, latents) -> Float[Array, "B n"]:
    """Returns the values of a block of dead latents where they are above their rows' cuts."""
    patterns, equals = revived.cut
    cut = number(patterns)[:, None]
    values = scores.columns(latents)
    ranked = values * scores.norms[latents][None, :]
    place = (scores.share.first + latents)[None, :]
    keep = (ranked > cut) | (ranked == cut) & (place <= equals[:, None])
    return jnp.where(keep & (latents < revived.dead.size)[None, :], values, 0.0)


def _gradient(revived: Revived, W_dec, x, latents, codes) -> tuple[Array, Array, Array]:
    """Returns the gradient of a block's encoder rows, biases and decoder rows."""
    slopes = matmul(revived.slope, W_dec[latents].T, jnp.float32)
    slopes = jnp.where(codes > 0, slopes, 0.0)
    return (
        matmul(slopes.T, x, jnp.float32),
        jnp.sum(slopes, axis=0),
        matmul(codes.T, revived.slope, jnp.float32),
    )
