"""The dictionary that training starts from."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from jaxdiff.config import DictionaryConfig
from jaxdiff.dictionaries.constraints import constrain, release
from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.errors import JaxdiffError


def init(config: DictionaryConfig, shape: tuple[int, int], *, key: PRNGKeyArray) -> Dictionary:
    """Makes a dictionary with random decoder directions and the transposed decoder as encoder.

    Entries are uniform as in Kaiming initialisation, whose bound cancels because each row is then
    scaled to `config.decoder_norm`, model by model. Biases are zero. A transcoder, whose two sides
    are different sources, draws its encoder in the same way.

    Args:
        config: Settings of the dictionary.
        shape: Number of sources and their width, (S, D).
        key: Key of the directions.

    Returns:
        A dictionary whose threshold is that of `config` for jumprelu and 0 otherwise.

    Raises:
        JaxdiffError: If the settings are for other sources.
    """
    _check(config, shape[0])
    everything = tuple(range(shape[0]))
    reads, writes = config.reads or everything, config.writes or everything
    W_dec = _rows(config, (len(writes), shape[1]), key)
    encoder = W_dec
    if reads != writes:
        encoder = _rows(config, (len(reads), shape[1]), jax.random.fold_in(key, 1))
    skip = (len(reads), shape[1], len(writes), shape[1])
    d = Dictionary(
        W_enc=jnp.transpose(encoder, (1, 2, 0)),
        b_enc=jnp.zeros(config.latents),
        W_dec=W_dec,
        b_dec=jnp.zeros((len(writes), shape[1])),
        threshold=_thresholds(config, len(writes)),
        activation="jumprelu" if config.activation == "gated" else config.activation,
        k=config.k,
        code_norm=config.code_norm,
        W_skip=jnp.zeros(skip) if config.skip else None,
        reads=config.reads,
        writes=config.writes,
    )
    return constrain(release(d, config), config)


def _check(config: DictionaryConfig, sources: int) -> None:
    written = len(config.writes or range(sources))
    problems = {
        "reads": max(config.reads or (0,)) >= sources,
        "writes": max(config.writes or (0,)) >= sources,
        "dedicated": config.dedicated and len(config.dedicated) != written,
        "shared": config.shared and written < 2,
        "cross": config.cross and written < 2,
    }
    for name in (name for name, wrong in problems.items() if wrong):
        raise JaxdiffError(
            f"{name} = {getattr(config, name)} does not fit activations of {sources} sources",
            where=f"dictionary.{name}",
            fix="sources count from 0; dedicated has a number for each, shared and cross need "
            "two or more",
        )


def _rows(config: DictionaryConfig, shape: tuple[int, int], key: PRNGKeyArray) -> Array:
    models, width = shape
    drawn = 1 if config.same_init else models
    rows = jax.random.uniform(key, (config.latents, drawn, width), minval=-1.0, maxval=1.0)
    rows = rows * (config.decoder_norm / jnp.linalg.norm(rows, axis=-1, keepdims=True))
    return jnp.broadcast_to(rows, (config.latents, models, width))


def _thresholds(config: DictionaryConfig, models: int) -> Array:
    if config.activation in ("jumprelu", "gated"):
        return jnp.full(
            config.latents, config.threshold if config.activation == "jumprelu" else 0.0
        )
    return jnp.zeros((models,) if config.code_norm == "decoupled" else ())
