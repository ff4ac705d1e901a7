"""The decoder that all supported families share, as Flax NNX modules.

The parameters of all blocks are stacked on a leading axis N; a `Block` is called with the slice of
one layer. Norms, softmax and rotations are computed in float32 whatever the dtype of the weights.
Every value that a block computes goes through `tap`, under the name of its site.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxdiff.models.attention import Attention, Cache, Context, Layer
from jaxdiff.models.layers import LayerNorm, Normal, RMSNorm, Tap, norm, softcap
from jaxdiff.models.mlp import MLP, Experts
from jaxdiff.models.spec import ModelConfig
from jaxdiff.types import HostOrDevice


class Block(nnx.Module):
    """One layer; made with the parameters of all layers stacked."""

    def __init__(self, spec: ModelConfig, *, normal: Normal):
        n, d = spec.n_layers, spec.d_model
        self.parallel = spec.parallel
        self.attn_norm = norm(n, d, spec=spec) if spec.pre_norms else None
        self.attn = Attention(spec, normal=normal)
        self.attn_post_norm = norm(n, d, spec=spec) if spec.post_norms else None
        self.mlp_norm = norm(n, d, spec=spec) if spec.pre_norms else None
        self.mlp = (Experts if spec.experts else MLP)(spec, normal=normal)
        self.mlp_post_norm = norm(n, d, spec=spec) if spec.post_norms else None

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
        """Returns the residual stream after the layer, and the cache."""
        x = tap("resid_pre", x)
        read = tap("attn.in", _through(self.attn_norm, tap("attn_in", x), tap, "attn_norm"))
        out, cache = self.attn(read, context, layer, tap, cache, fused=fused)
        attn_out = tap("attn_out", _through(self.attn_post_norm, out, tap, "attn_post_norm"))
        if not self.parallel:
            x = tap("resid_mid", x + attn_out)
        read = tap("mlp.in", _through(self.mlp_norm, tap("mlp_in", x), tap, "mlp_norm"))
        out = self.mlp(read, tap)
        mlp_out = tap("mlp_out", _through(self.mlp_post_norm, out, tap, "mlp_post_norm"))
        x = x + attn_out + mlp_out if self.parallel else x + mlp_out
        return tap("resid_post", x), cache


class Decoder(nnx.Module):
    """Embedding, blocks, final norm and unembedding."""

    def __init__(self, spec: ModelConfig, *, normal: Normal):
        vocab, d = spec.vocab_size, spec.d_model
        self.spec = spec
        self.embedding = nnx.Param(0.02 * normal(vocab, d))
        self.position_embedding = (
            nnx.Param(0.02 * normal(spec.context, d)) if spec.rope is None else None
        )
        self.blocks = Block(spec, normal=normal)
        self.final_norm = norm(d, spec=spec)
        self.unembedding = None if spec.tied else nnx.Param(0.02 * normal(vocab, d))

    def embed(self, tokens: Int[HostOrDevice, "B T"]) -> Float[Array, "B T D"]:
        """Returns the embeddings; those of token ids that do not exist are NaN."""
        x = jnp.take(self.embedding[...], tokens, axis=0, mode="fill")
        # The factor is rounded to the weights' dtype first, as in the reference models.
        return x * jnp.asarray(self.spec.d_model**0.5, x.dtype) if self.spec.embed_scale else x

    def embed_positions(self, positions: Int[HostOrDevice, "B T"]) -> Float[Array, "B T D"]:
        """Returns the embeddings of positions; those beyond the model's context are NaN."""
        assert self.position_embedding is not None
        return jnp.take(self.position_embedding[...], positions, axis=0, mode="fill")

    def unembed(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Returns the logits of the next token."""
        weight = self.embedding if self.unembedding is None else self.unembedding
        logits = jnp.einsum("...d,vd->...v", x, weight[...])
        return softcap(logits, self.spec.logit_softcap)


def _through(norm: RMSNorm | LayerNorm | None, x: Array, tap: Tap, name: str) -> Array:
    return x if norm is None else norm(x, lambda scale: tap(f"{name}.scale", scale))
