"""State of the sparse step: parameters by latent, and second moments that decay when needed."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Int32

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.kernels.row_adam.rule import Table
from jaxdiff.training.sparsity import L1State
from jaxdiff.training.state import TrainState

# Where the search for the first threshold starts: the bits of 1.0.
_FIRST_THRESHOLD = 0x3F800000


class Tables(NamedTuple):
    """Parameters and second moments with latents first; models and widths are joined.

    Attributes:
        W_enc: Encoder, [L, M D], with the squared norm of each row, [L, 1].
        b_enc: Encoder bias, [L, 1].
        W_dec: Decoder, [L, M D], with the squared norm of each row in each model, [L, M].
        b_dec: Decoder bias, [1, M D].
        threshold: Logarithm of the thresholds, [L, 1], of jumprelu alone.
    """

    W_enc: Table
    b_enc: Table
    W_dec: Table
    b_dec: Table
    threshold: Table | None = None


class RowState(NamedTuple):
    """State of sparse training; all of it is in a checkpoint.

    Attributes:
        tables: Parameters and Adam's second moments.
        last: Step that last touched each latent, 0 for none [steps].
        step: Steps done [steps].
        idle: Tokens since each latent was last active [tokens].
        l1: L1 weight and its controller.
        near: Bit pattern of the last selection's threshold, where the next search starts.
    """

    tables: Tables
    last: Int32[Array, " L"]
    step: Int[Array, ""]
    idle: Int[Array, " L"]
    l1: L1State
    near: Int32[Array, ""]


def to_rows(state: TrainState, train: TrainConfig) -> RowState:
    """Returns the sparse step's form of the dense step's state, when beta1 is 0."""
    moments = optax.tree.get(state.optimizer, "nu")
    dtype = jnp.dtype(train.moment_dtype)

    def table(name, latents_last=False):
        values = (getattr(tree, name) for tree in (state.params, moments))
        if latents_last:
            values = (jnp.moveaxis(value, -1, 0) for value in values)
        params, moment = (value.reshape(rows[name], -1) for value in values)
        return Table(params, moment.astype(dtype))

    latents = state.idle.size
    names = ("W_enc", "b_enc", "W_dec", "threshold")
    rows = dict.fromkeys(names, latents) | {"b_dec": 1}
    params = state.params
    return RowState(
        tables=Tables(
            W_enc=table("W_enc", latents_last=True)._replace(
                squares=jnp.sum(jnp.square(params.W_enc), axis=(0, 1))[:, None]
            ),
            b_enc=table("b_enc"),
            W_dec=table("W_dec")._replace(squares=jnp.sum(jnp.square(params.W_dec), axis=-1)),
            b_dec=table("b_dec"),
            threshold=table("threshold") if params.activation == "jumprelu" else None,
        ),
        last=jnp.full_like(state.idle, state.step),
        step=state.step,
        idle=state.idle,
        l1=state.l1,
        near=jnp.int32(_FIRST_THRESHOLD),
    )


def to_dictionary(tables: Tables, config: DictionaryConfig, shape: tuple[int, int]) -> Dictionary:
    """Returns the parameters as a dictionary; the threshold is 0, except for jumprelu."""
    assert config.activation != "gated"  # The dense step's alone.
    latents = tables.b_enc.params.shape[0]
    threshold = jnp.zeros(())
    if tables.threshold is not None:
        threshold = jnp.exp(tables.threshold.params[:, 0])
    return Dictionary(
        W_enc=jnp.moveaxis(tables.W_enc.params.reshape(latents, *shape), 0, -1),
        b_enc=tables.b_enc.params[:, 0],
        W_dec=tables.W_dec.params.reshape(latents, *shape),
        b_dec=tables.b_dec.params.reshape(shape),
        threshold=threshold,
        activation=config.activation,
        k=config.k,
        code_norm=config.code_norm,
    )
