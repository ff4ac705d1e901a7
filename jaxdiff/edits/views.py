"""Ways to look at a value and write back what was changed: heads, subspaces, dictionary latents.

For each, `put(value, get(value)) == value`, and a second `put` replaces the first.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.dictionaries import Dictionary, decode, encode
from jaxdiff.models import At

_view = jax.tree_util.register_dataclass


@_view
@dataclass(frozen=True)
class Heads:
    """Splits the last axis into `count` heads: `[..., D]` is seen as `[..., count, D / count]`."""

    count: int = field(metadata={"static": True})

    def get(self, value: Array, at: At) -> Array:
        """Returns the value by heads."""
        return value.reshape(*value.shape[:-1], self.count, -1)

    def put(self, value: Array, seen: Array, at: At) -> Array:
        """Returns the heads joined."""
        return seen.reshape(value.shape)


@_view
@dataclass(frozen=True)
class Subspace:
    """The coordinates in a subspace of the last axis; what is orthogonal to it is kept.

    Attributes:
        basis: Orthonormal columns `[D, K]`; `span` makes them of any vectors.
        complement: Whether what is orthogonal to the subspace is seen instead, as a `[D]` vector.
    """

    basis: Any
    complement: bool = field(default=False, metadata={"static": True})

    def get(self, value: Array, at: At) -> Array:
        """Returns the coordinates `value @ basis`, or `value - value @ basis @ basis.T`."""
        basis = jnp.asarray(self.basis, value.dtype)
        inside = jnp.einsum("...d,dk->...k", value, basis)
        return value - _embed(inside, basis) if self.complement else inside

    def put(self, value: Array, seen: Array, at: At) -> Array:
        """Returns the value with other coordinates."""
        basis = jnp.asarray(self.basis, value.dtype)
        change = seen - self.get(value, at)
        if self.complement:
            change -= _embed(jnp.einsum("...d,dk->...k", change, basis), basis)
            return value + change
        return value + _embed(change, basis)


def span(vectors: Float[Array, "D K"], *, complement: bool = False) -> Subspace:
    """Returns the subspace that vectors span; differentiable, so that vectors can be trained."""
    wide = jnp.asarray(vectors).astype(jnp.float32)
    return Subspace(jnp.linalg.qr(wide)[0], complement)


@_view
@dataclass(frozen=True)
class Latents:
    """The latents of a dictionary; what it does not reconstruct is kept.

    Only changes of latents are written back, along their decoder rows, so the reconstruction error
    stays in the value. A dictionary over M > 1 models works in `models.run_together`, where it sees
    the M - 1 worlds before this one.

    Attributes:
        dictionary: Dictionary for raw activations (`dictionaries.fold`).
        latents: Numbers of the latents that are seen, `[K]`; all when None.
    """

    dictionary: Dictionary
    latents: Any = None

    def get(self, value: Array, at: At) -> Array:
        """Returns the values of the latents, `[..., K]` in float32."""
        dictionary, model = self.dictionary, self._model(at)
        elementwise = dictionary.activation != "topk"
        if self.latents is not None and elementwise:
            dictionary = select(dictionary, self.latents)
        f = encode(dictionary, _sources(dictionary, value, at))
        f = f[:, model] if f.ndim == 3 else f
        if self.latents is not None and not elementwise:
            f = jnp.take(f, jnp.ravel(jnp.asarray(self.latents)), axis=-1)
        return f.reshape(*value.shape[:-1], -1)

    def put(self, value: Array, seen: Array, at: At) -> Array:
        """Returns the value with latents changed."""
        rows = self.dictionary.W_dec[:, self._model(at)]
        if self.latents is not None:
            rows = jnp.take(rows, jnp.ravel(jnp.asarray(self.latents)), axis=0)
        change = seen.astype(jnp.float32) - self.get(value, at)
        update = jnp.einsum("...k,kd->...d", change, rows.astype(jnp.float32))
        return value + update.astype(value.dtype)

    def _model(self, at: At) -> int:
        return 0 if self.dictionary.W_dec.shape[1] == 1 else len(at.others)


@_view
@dataclass(frozen=True)
class Reconstruct:
    """Op: puts a dictionary's reconstruction in place of the value, without its error."""

    dictionary: Dictionary

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the reconstruction of this model's activations."""
        out = decode(self.dictionary, encode(self.dictionary, _sources(self.dictionary, value, at)))
        model = 0 if out.shape[1] == 1 else len(at.others)
        return out[:, model].reshape(value.shape).astype(value.dtype)


def select(dictionary: Dictionary, latents: Any) -> Dictionary:
    """Returns a dictionary of some of the latents, numbers `[K]`."""
    index = jnp.ravel(jnp.asarray(latents))
    threshold = dictionary.threshold
    own = dictionary.activation == "jumprelu"
    return replace(
        dictionary,
        W_enc=jnp.take(dictionary.W_enc, index, axis=2),
        b_enc=jnp.take(dictionary.b_enc, index),
        W_dec=jnp.take(dictionary.W_dec, index, axis=0),
        threshold=jnp.take(threshold, index, axis=0) if own else threshold,
    )


def _sources(dictionary: Dictionary, value: Array, at: At) -> Float[Array, "R M D"]:
    models = dictionary.W_enc.shape[0]
    sources = (value,) if models == 1 else (*at.others, value)
    if len(sources) != models or value.shape[-1] != dictionary.W_enc.shape[1]:
        raise TypeError(
            f"the dictionary reads {models} models of width {dictionary.W_enc.shape[1]}, "
            f"here are {len(sources)} of width {value.shape[-1]}"
        )
    rows = [source.reshape(-1, source.shape[-1]).astype(jnp.float32) for source in sources]
    return jnp.stack(rows, axis=1)


def _embed(coordinates: Array, basis: Array) -> Array:
    return jnp.einsum("...k,dk->...d", coordinates, basis)
