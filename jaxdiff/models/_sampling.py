"""How the next token is chosen from the logits."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """Rule by which tokens are chosen; all but `top_k` may change without another program.

    Attributes:
        temperature: Logits are divided by it; 0 takes the likeliest token.
        key: Source of the randomness.
        stop: Token ids that end a row.
        top_p: Tokens are drawn from the fewest likeliest ones of at least this probability.
        top_k: Tokens are drawn from the k likeliest ones.
    """

    temperature: Float[Array, ""]
    key: Key[Array, ""]
    stop: Int[Array, " K"]
    top_p: Float[Array, ""] | None = None
    top_k: int | None = field(default=None, metadata={"static": True})


def choose(
    sampling: Sampling, logits: Float[Array, "B V"], positions: Int[Array, " B"]
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Chooses the next token of each row.

    A row's draw depends on its logits, its number in the batch and its position: not on how the
    text is padded, nor on the calls that it is generated in.

    Args:
        sampling: The rule.
        logits: Logits of the next token.
        positions: Position of that token in its text [tokens].

    Returns:
        Token ids, and their log-probabilities under the model itself: at temperature 1, among all
        tokens.
    """
    wide = logits.astype(jnp.float32)
    tokens = jax.lax.cond(
        sampling.temperature > 0,
        lambda: _draw(sampling, wide, positions),
        lambda: jnp.argmax(wide, axis=-1).astype(jnp.int32),
    )
    chosen = jnp.take_along_axis(wide, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(wide, axis=-1)


def _draw(
    sampling: Sampling, logits: Float[Array, "B V"], positions: Int[Array, " B"]
) -> Int[Array, " B"]:
    scaled, ids = _likeliest(sampling, logits / sampling.temperature)

    def draw(row: Array, position: Array, logits: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(sampling.key, row), position)
        return jax.random.categorical(key, logits)

    places = jax.vmap(draw)(jnp.arange(len(scaled)), positions, scaled).astype(jnp.int32)
    return places if ids is None else jnp.take_along_axis(ids, places[:, None], axis=-1)[:, 0]


def _likeliest(sampling: Sampling, logits: Float[Array, "B V"]) -> tuple[Float[Array, "B K"], Any]:
    """Returns what may be drawn, and its token ids; None where these are all in order."""
    if sampling.top_k is None and sampling.top_p is None:
        return logits, None
    size = logits.shape[-1]
    logits, ids = jax.lax.top_k(logits, min(sampling.top_k or size, size))
    if sampling.top_p is not None:
        p = jax.nn.softmax(logits, axis=-1)
        # The token that reaches top_p is one of them, and so the likeliest always is.
        logits = jnp.where(jnp.cumsum(p, axis=-1) - p < sampling.top_p, logits, -jnp.inf)
    return logits, ids
