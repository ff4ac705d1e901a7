"""What a forward pass knows of its tokens before the first block: positions, documents, windows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff.models._tap import At
from jaxdiff.models.attention import Context, Layer
from jaxdiff.models.rope import angles
from jaxdiff.models.spec import ModelConfig
from jaxdiff.types import HostOrDevice


def context(
    spec: ModelConfig,
    positions: Int[HostOrDevice, "#B T"],
    sequences: Int[HostOrDevice, "B T"] | None,
    *,
    lengths: Int[HostOrDevice, " #B"] | None = None,
    key_sequences: Int[HostOrDevice, "B S"] | None = None,
    start: Int[Array, ""] | None = None,
) -> Context:
    """Returns what the blocks read besides the stream.

    Args:
        spec: The model.
        positions: Position of each token [tokens].
        sequences: Document of each token.
        lengths: Length of each row's text where the tokens are a piece of it [tokens].
        key_sequences: Document of each column of the cache; without one those of the tokens.
        start: Column of the first token in the cache.
    """
    ropes = [rope for rope in (spec.rope, spec.local_rope) if rope is not None]
    return Context(
        rotations=tuple(angles(rope, spec.head_dim, positions, lengths) for rope in ropes),
        sequences=sequences,
        key_sequences=sequences if key_sequences is None else key_sequences,
        start=start,
    )


def place(
    positions: Int[HostOrDevice, "#B T"],
    sequences: Int[HostOrDevice, "B T"] | None,
    step: Array | int = 0,
) -> At:
    """Returns what edits may know of the tokens."""
    positions = jnp.asarray(positions)
    if sequences is None:
        return At(positions=positions, last=positions[:, -1], step=step)
    real: Bool[Array, "B T"] = jnp.asarray(sequences) >= 0
    at_last = last_column(sequences)
    wide = jnp.broadcast_to(positions, real.shape)
    last = jnp.take_along_axis(wide, at_last[:, None], axis=1)[:, 0]
    return At(positions=positions, last=last, real=real, step=step)


def in_document(sequences: Int[HostOrDevice, "B T"]) -> Int[Array, "B T"]:
    """Returns the position of each token in its document, which is a run of equal numbers."""
    sequences = jnp.asarray(sequences)
    columns = jnp.broadcast_to(jnp.arange(sequences.shape[1])[None, :], sequences.shape)
    first = jnp.pad(sequences[:, 1:] != sequences[:, :-1], ((0, 0), (1, 0)))
    starts = jax.lax.cummax(jnp.where(first, columns, 0), axis=1)
    return columns - starts


def last_column(sequences: Int[HostOrDevice, "B T"]) -> Int[Array, " B"]:
    """Returns the column of each row's last token that is no padding."""
    columns = jnp.arange(sequences.shape[1])[None, :]
    return jnp.max(jnp.where(jnp.asarray(sequences) >= 0, columns, 0), axis=1)


def layers(spec: ModelConfig, length: int) -> tuple[Layer, ...]:
    """Returns what tells the layers apart, for texts of at most `length` tokens."""
    windows = spec.windows or (None,) * spec.n_layers
    local = spec.local_rope is not None
    return tuple(
        Layer(
            window=w if w is None or w < length else None,
            local=w is not None if local else None,
        )
        for w in windows
    )


def stacked_layers(spec: ModelConfig, length: int) -> Layer:
    """Returns the same as arrays over layers; None where none has it."""
    each = layers(spec, length)
    windows = [layer.window for layer in each]
    some = any(window is not None for window in windows)
    return Layer(
        window=jnp.asarray([length if w is None else w for w in windows]) if some else None,
        local=None if each[0].local is None else jnp.asarray([layer.local for layer in each]),
    )
