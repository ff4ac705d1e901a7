"""Dictionary latents of a value: seen, changed, or put in its place."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.dictionaries import Dictionary, decode, encode
from jaxdiff.dictionaries.normalization import Normalization
from jaxdiff.models import At


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Latents:
    """View: the latents of a dictionary; what it does not reconstruct is kept.

    Only changes of latents are written back, along their decoder rows, so the reconstruction error
    stays in the value. A dictionary over M > 1 models works in `models.run_together`, where it sees
    the M - 1 worlds before this one. Of the laws of views the second one does not hold: what
    another edit then sees is the changed value, encoded anew.

    Attributes:
        dictionary: The dictionary.
        latents: Numbers of the latents that are seen, `[K]`; all when None.
        normalization: What it was trained with (`training.TrainResult.normalization`); None says
            that it reads activations as they are. It has to be said: left out by mistake, the
            latents would be others and nothing would show it.
    """

    dictionary: Dictionary
    latents: Any = None
    normalization: Normalization | None = field(kw_only=True)

    def get(self, value: Array, at: At) -> Float[Array, "..."]:
        """Returns the values of the latents, `[..., K]` in float32."""
        dictionary = self.dictionary
        # A latent's value depends on the others only where they compete.
        alone = dictionary.activation not in ("topk", "group_max")
        if self.latents is not None and alone:
            dictionary = select(dictionary, self.latents)
        f = encode(dictionary, _sources(dictionary, self.normalization, value, at))
        f = f[:, _model(dictionary, at)] if f.ndim == 3 else f
        if self.latents is not None and not alone:
            f = jnp.take(f, jnp.ravel(jnp.asarray(self.latents)), axis=-1)
        return f.reshape(*value.shape[:-1], -1)

    def put(self, value: Array, seen: Array, at: At) -> Array:
        """Returns the value with latents changed."""
        model = _model(self.dictionary, at)
        rows = self.dictionary.W_dec[:, model]
        if self.latents is not None:
            rows = jnp.take(rows, jnp.ravel(jnp.asarray(self.latents)), axis=0)
        change = seen.astype(jnp.float32) - self.get(value, at)
        rows = rows.astype(jnp.float32)
        update = jnp.einsum("...k,kd->...d", change, rows, precision="highest")
        if self.normalization is not None:
            update /= jnp.asarray(self.normalization.scale)[model]
        return value + update.astype(value.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reconstruct:
    """Op: puts a dictionary's reconstruction in place of the value, without its error.

    Attributes:
        dictionary: The dictionary.
        normalization: What it was trained with; None says that it reads activations as they are.
    """

    dictionary: Dictionary
    normalization: Normalization | None = field(kw_only=True)

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the reconstruction of this model's activations."""
        d, space = self.dictionary, self.normalization
        x = _sources(d, space, value, at)
        out = decode(d, encode(d, x), x)
        out = out if space is None else jnp.asarray(space.invert(out))
        return out[:, _model(d, at)].reshape(value.shape).astype(value.dtype)


def select(dictionary: Dictionary, latents: Any) -> Dictionary:
    """Returns a dictionary of some of the latents, numbers `[K]`."""
    index = jnp.ravel(jnp.asarray(latents))
    threshold = jnp.asarray(dictionary.threshold)
    # The threshold of jumprelu belongs to the latent, those of other rules to all of them.
    own = dictionary.activation == "jumprelu"
    return replace(
        dictionary,
        W_enc=jnp.take(dictionary.W_enc, index, axis=2),
        b_enc=jnp.take(dictionary.b_enc, index),
        W_dec=jnp.take(dictionary.W_dec, index, axis=0),
        threshold=jnp.take(threshold, index, axis=0) if own else threshold,
    )


def _model(dictionary: Dictionary, at: At) -> int:
    """Returns which model of the dictionary this world is."""
    return 0 if dictionary.W_dec.shape[1] == 1 else len(at.others)


def _sources(
    dictionary: Dictionary, normalization: Normalization | None, value: Array, at: At
) -> Float[Array, "R M D"]:
    """Returns what the dictionary reads."""
    models, width = dictionary.W_enc.shape[:2]
    if dictionary.reads != dictionary.writes:
        raise TypeError(
            "a transcoder writes another site than the one that an edit reads and writes"
        )
    everyone = (value,) if models == 1 else (*at.others, value)
    sources = [source for source in everyone if source is not None]
    if len(sources) != models or value.shape[-1] != width:
        raise TypeError(
            f"the dictionary reads {models} models of width {width}, "
            f"here are {len(sources)} of width {value.shape[-1]}"
            + ("; `models.run_together` runs several" if models > len(sources) else "")
        )
    rows = [source.reshape(-1, width).astype(jnp.float32) for source in sources]
    x = jnp.stack(rows, axis=1)
    return x if normalization is None else jnp.asarray(normalization.apply(x))
