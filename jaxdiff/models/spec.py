"""What a decoder-only language model is made of: static, hashable, independent of file formats."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding, with the frequency scaling of Llama 3.1 where `factor` is not 1.

    Attributes:
        theta: Base of the wavelengths.
        factor: Long wavelengths are stretched by this.
        low_freq: Wavelengths above `context / low_freq` are stretched fully [ratio].
        high_freq: Wavelengths below `context / high_freq` stay as they are [ratio].
        context: Context length before the stretch [tokens].
    """

    theta: float = 10_000.0
    factor: float = 1.0
    low_freq: float = 1.0
    high_freq: float = 4.0
    context: int = 8192


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Structure of a model. The defaults after `d_mlp` are a plain Llama.

    Attributes:
        vocab_size: Rows of the embedding [tokens].
        d_model: Width of the residual stream.
        n_layers: Blocks.
        n_heads: Query heads.
        d_mlp: Width of the hidden layer of the MLP.
        n_kv_heads: Key and value heads; `n_heads` when 0.
        head_dim: Width of one head; `d_model / n_heads` when 0.
        architecture: Hugging Face `model_type`.
        activation: Nonlinearity of the gated MLP.
        norm_eps: Epsilon of RMSNorm.
        norm_offset: Added to a norm's weight (Gemma stores `w` and multiplies by `1 + w`).
        post_norms: Norms also after attention and MLP, before they are added to the stream.
        rope: Rotary position embedding.
        attention_scale: Factor of the scores; `head_dim ** -0.5` when 0.
        attention_softcap: Scores are `c * tanh(scores / c)`.
        windows: Sliding window of each layer [tokens], None for full attention; empty: all full.
        attention_bias: Biases in the four attention projections.
        mlp_bias: Biases in the three MLP projections.
        embed_scale: Embeddings are multiplied by `sqrt(d_model)`.
        tied: The embedding is also the unembedding.
        logit_softcap: Logits are `c * tanh(logits / c)`.
        context: Longest context the model is made for [tokens].
        bos: Token id that begins a text.
        eos: Token ids that end one.
        pad: Token id of padding.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_mlp: int
    n_kv_heads: int = 0
    head_dim: int = 0
    architecture: str = "llama"
    activation: Literal["silu", "gelu_tanh"] = "silu"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    post_norms: bool = False
    rope: Rope = Rope()
    attention_scale: float = 0.0
    attention_softcap: float | None = None
    windows: tuple[int | None, ...] = ()
    attention_bias: bool = False
    mlp_bias: bool = False
    embed_scale: bool = False
    tied: bool = True
    logit_softcap: float | None = None
    context: int = 2048
    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None

    def __post_init__(self):
        heads = self.n_kv_heads or self.n_heads
        width = self.head_dim or self.d_model // self.n_heads
        # What was left at 0 is filled in, so that equal models have equal configs.
        object.__setattr__(self, "n_kv_heads", heads)
        object.__setattr__(self, "head_dim", width)
        object.__setattr__(self, "attention_scale", self.attention_scale or width**-0.5)
        if self.n_heads % heads:
            raise ValueError(f"n_heads={self.n_heads} is no multiple of n_kv_heads={heads}")
        if width % 2:
            raise ValueError(f"head_dim={width} is odd; RoPE rotates pairs")
        if self.windows and len(self.windows) != self.n_layers:
            raise ValueError(f"{len(self.windows)} windows for {self.n_layers} layers")
