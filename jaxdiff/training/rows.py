"""State of the sparse step: parameters by latent, and second moments that decay when needed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Int32

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.kernels.row_adam.rule import BETA2  # pyright: ignore[reportMissingImports]
from jaxdiff.training.sparsity import L1State
from jaxdiff.training.state import TrainState, make_optimizer

# Where the search for the first threshold starts: the bits of 1.0.
_FIRST_THRESHOLD = 0x3F800000


class Rows(NamedTuple):
    """Parameters, or second moments, with latents first; models and widths are joined.

    Attributes:
        W_enc: Encoder, one row for each latent.
        b_enc: Encoder bias.
        W_dec: Decoder.
        b_dec: Decoder bias.
    """

    W_enc: Float[Array, "L MD"]
    b_enc: Float[Array, " L"]
    W_dec: Float[Array, "L MD"]
    b_dec: Float[Array, " MD"]


class RowState(NamedTuple):
    """State of sparse training; all of it is in a checkpoint.

    Attributes:
        params: Parameters.
        moments: Adam's second moments as of the step that last touched a row.
        last: That step, 0 for none [steps].
        step: Steps done [steps].
        idle: Tokens since each latent was last active [tokens].
        l1: L1 weight and its controller.
        near: Bit pattern of the last selection's threshold, where the next search starts.
    """

    params: Rows
    moments: Rows
    last: Int32[Array, " L"]
    step: Int[Array, ""]
    idle: Int[Array, " L"]
    l1: L1State
    near: Int32[Array, ""]


class Schedule(NamedTuple):
    """How a step moves rows.

    Attributes:
        step: Number of the step, from 1 [steps].
        rate: Learning rate.
        scale: Factor of the gradient, below 1 where it is clipped.
    """

    step: Int[Array, ""]
    rate: Float[Array, ""]
    scale: Float[Array, ""]


def to_rows(state: TrainState, train: TrainConfig) -> RowState:
    """Returns the sparse step's form of the dense step's state, when beta1 is 0."""
    moments = _adam(state.optimizer).nu
    dtype = jnp.dtype(train.moment_dtype)
    return RowState(
        params=_rows(state.params),
        moments=jax.tree.map(lambda a: a.astype(dtype), _rows(moments)),
        last=jnp.full_like(state.idle, state.step),
        step=state.step,
        idle=state.idle,
        l1=state.l1,
        near=jnp.int32(_FIRST_THRESHOLD),
    )


def to_dense(
    state: RowState, config: DictionaryConfig, train: TrainConfig, shape: tuple[int, int]
) -> TrainState:
    """Returns the dense step's form of the state, with all second moments decayed to this step."""
    since = (state.step - state.last).astype(jnp.float32)
    decay = jnp.exp(since * jnp.log(jnp.float32(BETA2)))
    moments = jax.tree.map(lambda a: a.astype(jnp.float32), state.moments)
    moments = moments._replace(
        W_enc=moments.W_enc * decay[:, None],
        b_enc=moments.b_enc * decay,
        W_dec=moments.W_dec * decay[:, None],
    )
    params = to_dictionary(state.params, config, shape)
    fresh = make_optimizer(config, train).init(params)
    adam = _adam(fresh)._replace(count=state.step, nu=to_dictionary(moments, config, shape))
    counted = jax.tree.map(
        lambda a: state.step if a.dtype == jnp.int32 else a, _replaced(fresh, adam)
    )
    return TrainState(params, counted, state.step, state.idle, state.l1)


def to_dictionary(rows: Rows, config: DictionaryConfig, shape: tuple[int, int]) -> Dictionary:
    """Returns the parameters as a dictionary, its threshold 0."""
    latents = rows.b_enc.shape[0]
    return Dictionary(
        W_enc=jnp.moveaxis(rows.W_enc.reshape(latents, *shape), 0, -1),
        b_enc=rows.b_enc,
        W_dec=rows.W_dec.reshape(latents, *shape),
        b_dec=rows.b_dec.reshape(shape),
        threshold=jnp.zeros(shape[:1] if config.code_norm == "decoupled" else ()),
        activation=config.activation,
        k=config.k,
        code_norm=config.code_norm,
    )


def _rows(d: Dictionary) -> Rows:
    latents = d.b_enc.shape[0]
    return Rows(
        W_enc=jnp.moveaxis(d.W_enc, -1, 0).reshape(latents, -1),
        b_enc=d.b_enc,
        W_dec=d.W_dec.reshape(latents, -1),
        b_dec=d.b_dec.reshape(-1),
    )


def _is_adam(node) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


def _adam(optimizer) -> optax.ScaleByAdamState:
    return next(n for n in jax.tree.leaves(optimizer, is_leaf=_is_adam) if _is_adam(n))


def _replaced(optimizer, adam: optax.ScaleByAdamState):
    return jax.tree.map(lambda n: adam if _is_adam(n) else n, optimizer, is_leaf=_is_adam)
