"""The decoder that Llama and Gemma 2 share, as Flax NNX modules.

Matrices are `[out, in]`, as in Hugging Face files, so a row of a file is a row here. The parameters
of all blocks are stacked on a leading axis N; a `Block` is called with the slice of one layer.
Norms, softmax and rotations are computed in float32 whatever the dtype of the weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxdiff.models.rope import rotate
from jaxdiff.models.spec import ModelConfig
from jaxdiff.types import HostOrDevice

Tap = Callable[[str, Array], Array]
Normal = Callable[..., Array]
"""Draws standard normal numbers: `normal(*shape)`."""


class Context(NamedTuple):
    """What every block reads besides the residual stream.

    Attributes:
        cos: Cosines of the rotation angles, `[B, T, head_dim / 2]`, float32.
        sin: Sines of the same angles.
        sequences: Document of each token, `[B, T]`, or None when a row is one document.
    """

    cos: Array
    sin: Array
    sequences: HostOrDevice | None


class Linear(nnx.Module):
    """`x @ weight.T + bias`."""

    def __init__(self, *shape: int, bias: bool, scale: float = 1.0, normal: Normal):
        *layers, out, width = shape
        std = scale * width**-0.5
        self.weight = nnx.Param(std * normal(*shape))
        self.bias = nnx.Param(jnp.zeros((*layers, out))) if bias else None

    def __call__(self, x: Float[Array, "B T i"]) -> Float[Array, "B T o"]:
        """Applies the map to the last axis."""
        y = jnp.einsum("bti,oi->bto", x, self.weight[...])
        return y if self.bias is None else y + self.bias[...][None, None, :]


class Norm(nnx.Module):
    """RMSNorm with a weight: `x / rms(x) * (offset + weight)`, in float32."""

    def __init__(self, *shape: int, spec: ModelConfig):
        self.weight = nnx.Param(jnp.full(shape, 1.0 - spec.norm_offset))
        self.offset, self.eps = spec.norm_offset, spec.norm_eps

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Normalises the last axis."""
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        weight = self.weight[...].astype(jnp.float32) + self.offset
        return (wide * weight[None, None, :]).astype(x.dtype)


class Attention(nnx.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, spec: ModelConfig, *, normal: Normal):
        self.spec = spec
        n, d, bias = spec.n_layers, spec.d_model, spec.attention_bias
        queries, keys = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
        self.q = Linear(n, queries, d, bias=bias, normal=normal)
        self.k = Linear(n, keys, d, bias=bias, normal=normal)
        self.v = Linear(n, keys, d, bias=bias, normal=normal)
        # 2N branches add to the stream: this keeps its variance near 1 at the start of training.
        self.o = Linear(n, d, queries, bias=bias, scale=(2 * n) ** -0.5, normal=normal)

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, window: Int[Array, ""] | None
    ) -> Float[Array, "B T D"]:
        """Mixes the tokens of each document; `window` [tokens] limits how far back they look."""
        spec, (b, t, _) = self.spec, x.shape
        groups = spec.n_heads // spec.n_kv_heads
        q = rotate(self.q(x).reshape(b, t, spec.n_heads, spec.head_dim), context.cos, context.sin)
        k = rotate(self.k(x).reshape(b, t, spec.n_kv_heads, -1), context.cos, context.sin)
        v = self.v(x).reshape(b, t, spec.n_kv_heads, spec.head_dim)
        q = q.reshape(b, t, spec.n_kv_heads, groups, spec.head_dim)
        scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
        scores = _softcap(scores * spec.attention_scale, spec.attention_softcap)
        allowed = _allowed(t, context.sequences, window)
        scores = jnp.where(allowed[:, None, None], scores, jnp.finfo(jnp.float32).min)
        pattern = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        z = jnp.einsum("bkgts,bskh->btkgh", pattern, v)
        return self.o(z.reshape(b, t, spec.n_heads * spec.head_dim))


class MLP(nnx.Module):
    """`down(act(gate(x)) * up(x))`."""

    def __init__(self, spec: ModelConfig, *, normal: Normal):
        n, d, hidden, bias = spec.n_layers, spec.d_model, spec.d_mlp, spec.mlp_bias
        self.activation = spec.activation
        self.gate = Linear(n, hidden, d, bias=bias, normal=normal)
        self.up = Linear(n, hidden, d, bias=bias, normal=normal)
        self.down = Linear(n, d, hidden, bias=bias, scale=(2 * n) ** -0.5, normal=normal)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the MLP to each token."""
        gate = self.gate(x)
        gate = jax.nn.silu(gate) if self.activation == "silu" else jax.nn.gelu(gate)
        return self.down(gate * self.up(x))


class Block(nnx.Module):
    """One layer; made with the parameters of all layers stacked."""

    def __init__(self, spec: ModelConfig, *, normal: Normal):
        n, d = spec.n_layers, spec.d_model
        self.attn_norm = Norm(n, d, spec=spec)
        self.attn = Attention(spec, normal=normal)
        self.attn_post_norm = Norm(n, d, spec=spec) if spec.post_norms else None
        self.mlp_norm = Norm(n, d, spec=spec)
        self.mlp = MLP(spec, normal=normal)
        self.mlp_post_norm = Norm(n, d, spec=spec) if spec.post_norms else None

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, window: Int[Array, ""] | None, tap: Tap
    ) -> Float[Array, "B T D"]:
        """Returns the residual stream after the layer; `tap` sees what is computed on the way."""
        out = self.attn(self.attn_norm(x), context, window)
        if self.attn_post_norm is not None:
            out = self.attn_post_norm(out)
        x = tap("resid_mid", x + tap("attn_out", out))
        out = self.mlp(self.mlp_norm(x))
        if self.mlp_post_norm is not None:
            out = self.mlp_post_norm(out)
        return x + tap("mlp_out", out)


class Decoder(nnx.Module):
    """Embedding, blocks, final norm and unembedding."""

    def __init__(self, spec: ModelConfig, *, normal: Normal):
        vocab, d = spec.vocab_size, spec.d_model
        self.spec = spec
        self.embedding = nnx.Param(0.02 * normal(vocab, d))
        self.blocks = Block(spec, normal=normal)
        self.final_norm = Norm(d, spec=spec)
        self.unembedding = None if spec.tied else nnx.Param(0.02 * normal(vocab, d))

    def embed(self, tokens: Int[HostOrDevice, "B T"]) -> Float[Array, "B T D"]:
        """Returns the embeddings; those of token ids that do not exist are NaN."""
        x = jnp.take(self.embedding[...], tokens, axis=0, mode="fill")
        # The factor is rounded to the weights' dtype first, as in the reference models.
        return x * jnp.asarray(self.spec.d_model**0.5, x.dtype) if self.spec.embed_scale else x

    def unembed(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Returns the logits of the next token."""
        weight = self.embedding if self.unembedding is None else self.unembedding
        return _softcap(jnp.einsum("btd,vd->btv", x, weight[...]), self.spec.logit_softcap)


def _softcap(x: Array, cap: float | None) -> Array:
    return x if cap is None else cap * jnp.tanh(x / cap)


def _allowed(t: int, sequences: HostOrDevice | None, window: Array | None) -> Array:
    """Returns `[1 or B, query, key]`: which earlier tokens each token may look at."""
    back = jnp.arange(t)[:, None] - jnp.arange(t)[None, :]
    allowed = (back >= 0)[None]
    if window is not None:
        allowed &= (back < window)[None]
    if sequences is not None:
        allowed &= sequences[:, :, None] == sequences[:, None, :]
    return allowed
