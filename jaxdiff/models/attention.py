"""Causal grouped-query attention, with a tap at everything that it computes on the way."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxdiff.models.layers import Linear, Normal, RMSNorm, Tap, softcap
from jaxdiff.models.rope import rotate
from jaxdiff.models.spec import ModelConfig
from jaxdiff.types import HostOrDevice


class Context(NamedTuple):
    """What every block reads besides the residual stream.

    Attributes:
        rotations: Cosines and sines of the rotation angles, each `[B, T, dim / 2]` in float32: of
            the model's layers and, where those with a window rotate otherwise, of them. Empty for
            learned positions.
        sequences: Document of each token, `[B, T]`, or None when a row is one document.
        key_sequences: The same of the keys, `[B, S]`; as `sequences` without a cache.
        start: Column of the first token in the cache; None without a cache.
        positions: Position of each token in its text, `[B, T]`, where windows count tokens and
            columns have gaps; None where columns have none.
        key_positions: The same of the keys, `[B, S]`.
    """

    rotations: tuple[tuple[Array, Array], ...]
    sequences: HostOrDevice | None
    key_sequences: HostOrDevice | None
    start: Array | None = None
    positions: Array | None = None
    key_positions: Array | None = None


class Layer(NamedTuple):
    """What tells one layer from another besides its weights.

    Attributes:
        window: How far back tokens look [tokens]; None: to the start.
        local: Whether the second of the context's rotations is used; None: never.
    """

    window: Array | int | None
    local: Array | bool | None


class Cache(NamedTuple):
    """Keys (rotated) and values at the columns of a row.

    Heads come before columns: as products over heads read them, so that no step moves a cache.

    Attributes:
        k: Keys of one layer, or of all of them `[N, B, K, S, h]`.
        v: Values, likewise.
        layer: Number of the layer, where k and v are of all layers.
    """

    k: Float[Array, "*N B K S h"]
    v: Float[Array, "*N B K S h"]
    layer: Array | int | None = None

    def with_columns(self, k: Array, v: Array, start: Array) -> "Cache":
        """Returns the cache with keys and values `[B, K, T, h]` at the columns from start on."""

        def written(cache: Array, new: Array) -> Array:
            new = new.astype(cache.dtype)
            if self.layer is None:
                return jax.lax.dynamic_update_slice(cache, new, (0, 0, start, 0))
            return jax.lax.dynamic_update_slice(cache, new[None], (self.layer, 0, 0, start, 0))

        return Cache(written(self.k, k), written(self.v, v), self.layer)

    def own(self) -> tuple[Float[Array, "B K S h"], Float[Array, "B K S h"]]:
        """Returns keys and values of the layer."""
        if self.layer is None:
            return self.k, self.v
        k, v = (jax.lax.dynamic_index_in_dim(x, self.layer, 0, False) for x in self[:2])
        return k, v


class Attention(nnx.Module):
    """Attention of all heads."""

    def __init__(self, spec: ModelConfig, *, normal: Normal):
        self.spec = spec
        n, d, bias = spec.n_layers, spec.d_model, spec.attention_bias
        queries, keys = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
        rank = {name: dict(spec.lora).get(f"attn.{name}", 0) for name in "qkvo"}
        self.q = Linear(n, queries, d, bias=bias, rank=rank["q"], normal=normal)
        self.k = Linear(n, keys, d, bias=bias, rank=rank["k"], normal=normal)
        self.v = Linear(n, keys, d, bias=bias, rank=rank["v"], normal=normal)
        # 2N branches add to the stream: this keeps its variance near 1 at the start of training.
        self.o = Linear(
            n,
            d,
            queries,
            bias=bool(spec.attention_out_bias),
            scale=(2 * n) ** -0.5,
            rank=rank["o"],
            normal=normal,
        )
        if spec.qk_norm == "head":
            queries = keys = spec.head_dim
        self.q_norm = RMSNorm(n, queries, spec=spec) if spec.qk_norm else None
        self.k_norm = RMSNorm(n, keys, spec=spec) if spec.qk_norm else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        layer: Layer,
        tap: Tap,
        cache: Cache | None = None,
        *,
        fused: bool = False,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Mixes the tokens of each document.

        Args:
            x: What attention reads.
            context: Positions and documents.
            layer: Window and rotation of the layer.
            tap: Sees q, k, v, scores, pattern, z and out.
            cache: Keys and values of earlier columns, to which those of x are added.
            fused: Use the device's fused kernel, which shows neither scores nor pattern.

        Returns:
            What attention returns, and the cache with x in it.
        """
        spec = self.spec
        q = tap("attn.q", self._heads(self.q(x), self.q_norm))
        k = tap("attn.k", self._heads(self.k(x), self.k_norm))
        v = tap("attn.v", self._heads(self.v(x), None))
        if context.rotations:
            cos, sin = _rotation(context, layer)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        if cache is not None:
            assert context.start is not None
            cache = cache.with_columns(k, v, context.start)
            k, v = (each.astype(x.dtype) for each in cache.own())
        allowed = _allowed(q.shape[1], k.shape[2], context, layer.window)
        z = (_fused if fused else _plain)(spec, q, k, v, allowed, tap)
        z = tap("attn.z", z)
        return tap("attn.out", self.o(z.reshape(*z.shape[:2], -1))), cache

    def _heads(self, x: Array, norm: RMSNorm | None) -> Float[Array, "B T heads h"]:
        whole = norm is not None and self.spec.qk_norm == "all"
        x = norm(x) if norm is not None and whole else x
        x = x.reshape(*x.shape[:2], -1, self.spec.head_dim)
        return x if norm is None or whole else norm(x)


def _plain(
    spec: ModelConfig, q: Array, k: Array, v: Array, allowed: Array, tap: Tap
) -> Float[Array, "B T H h"]:
    b, t, heads, width = q.shape
    q = q.reshape(b, t, spec.n_kv_heads, heads // spec.n_kv_heads, width)
    scores = jnp.einsum("btkgh,bksh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = softcap(scores * spec.attention_scale, spec.attention_softcap)
    scores = tap("attn.scores", scores.reshape(b, heads, t, -1))
    scores = jnp.where(allowed[:, None], scores, jnp.finfo(jnp.float32).min)
    pattern = tap("attn.pattern", jax.nn.softmax(scores, axis=-1).astype(v.dtype))
    pattern = pattern.reshape(b, spec.n_kv_heads, -1, *pattern.shape[2:])
    return jnp.einsum("bkgts,bksh->btkgh", pattern, v).reshape(b, t, heads, width)


def _fused(
    spec: ModelConfig, q: Array, k: Array, v: Array, allowed: Array, tap: Tap
) -> Float[Array, "B T H h"]:
    del tap
    cudnn = jax.default_backend() == "gpu" and q.dtype != jnp.float32
    return jax.nn.dot_product_attention(
        q,
        jnp.swapaxes(k, 1, 2),
        jnp.swapaxes(v, 1, 2),
        mask=allowed[:, None],
        scale=spec.attention_scale,
        implementation="cudnn" if cudnn else "xla",
    )


def _rotation(context: Context, layer: Layer) -> tuple[Array, Array]:
    if layer.local is None:
        return context.rotations[0]
    if isinstance(layer.local, bool):
        return context.rotations[layer.local]
    both = [jnp.stack(tables) for tables in zip(*context.rotations, strict=True)]
    cos, sin = (
        jax.lax.dynamic_index_in_dim(tables, layer.local.astype(jnp.int32), 0, False)
        for tables in both
    )
    return cos, sin


def _allowed(t: int, s: int, context: Context, window: Int[Array, ""] | int | None) -> Array:
    """Returns `[1 or B, query, key]`: which tokens each token may look at."""
    queries = jnp.arange(t)[:, None]
    if context.start is not None:
        queries = queries + context.start
    back = queries - jnp.arange(s)[None, :]
    allowed = (back >= 0)[None]
    if window is not None:
        if context.positions is not None and context.key_positions is not None:
            back = context.positions[:, :, None] - context.key_positions[:, None, :]
        else:
            back = back[None]
        allowed &= back < window
    if context.sequences is not None and context.key_sequences is not None:
        allowed &= context.sequences[:, :, None] == context.key_sequences[:, None, :]
    return allowed
