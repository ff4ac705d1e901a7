"""What a decoder-only language model is made of: static, hashable, independent of file formats."""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh", "gelu", "relu"]


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding; the defaults scale nothing.

    Attributes:
        theta: Base of the wavelengths.
        dim: Coordinates of a head that are rotated, from the first on; all of them when 0.
        kind: How wavelengths are stretched for long contexts. linear: all by `factor`; llama3: long
            ones by `factor`, short ones not at all; longrope: each by its own factor, from `short`
            or, where a text is longer than `context`, from `long`.
        factor: Stretch of the wavelengths.
        low_freq: llama3: wavelengths above `context / low_freq` are stretched fully [ratio].
        high_freq: llama3: wavelengths below `context / high_freq` stay as they are [ratio].
        context: Context length before the stretch [tokens].
        short: longrope: factors of the `dim / 2` wavelengths in short texts.
        long: longrope: factors in long ones.
        attention_factor: longrope: what cosines and sines are multiplied by.
    """

    theta: float = 10_000.0
    dim: int = 0
    kind: Literal["default", "linear", "llama3", "longrope"] = "default"
    factor: float = 1.0
    low_freq: float = 1.0
    high_freq: float = 4.0
    context: int = 8192
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    attention_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Structure of a model. The defaults after `d_mlp` are a plain Llama.

    Attributes:
        vocab_size: Rows of the embedding [tokens].
        d_model: Width of the residual stream.
        n_layers: Blocks.
        n_heads: Query heads.
        d_mlp: Width of the hidden layer of the MLP, or of each expert.
        n_kv_heads: Key and value heads; `n_heads` when 0.
        head_dim: Width of one head; `d_model / n_heads` when 0.
        architecture: Hugging Face `model_type`.
        activation: Nonlinearity of the MLP.
        gated: Whether the MLP is `down(act(gate(x)) * up(x))`, or `down(act(up(x)))`.
        norm: RMSNorm, or LayerNorm with mean and bias.
        norm_eps: Epsilon of the norms.
        norm_offset: Added to a norm's weight (Gemma stores `w` and multiplies by `1 + w`).
        pre_norms: Norms before attention and MLP.
        post_norms: Norms after attention and MLP, before they are added to the stream.
        parallel: Attention and MLP read the same stream, and both are added to it at once.
        qk_norm: RMSNorm of queries and keys before the rotation: of each head, or of all at once.
        rope: Rotary position embedding; None: a learned embedding of `context` positions.
        local_rope: Rotary position embedding of the layers with a window; `rope` when None.
        attention_scale: Factor of the scores; `head_dim ** -0.5` when 0.
        attention_softcap: Scores are `c * tanh(scores / c)`.
        windows: Sliding window of each layer [tokens], None for full attention; empty: all full.
        attention_bias: Biases in the projections to queries, keys and values.
        attention_out_bias: Bias in the attention's output projection; as `attention_bias` when
            None.
        mlp_bias: Biases in the MLP's projections.
        experts: Experts of the MLP that a router chooses from; 0 for a plain MLP.
        experts_per_token: Experts that each token goes through.
        normalize_experts: Whether the weights of a token's experts are scaled to sum to 1.
        embed_scale: Embeddings are multiplied by `sqrt(d_model)`.
        tied: The embedding is also the unembedding.
        logit_softcap: Logits are `c * tanh(logits / c)`.
        context: Longest context the model is made for [tokens].
        bos: Token id that begins a text.
        eos: Token ids that end one.
        pad: Token id of padding.
        lora: Low-rank updates that are kept apart from the weights: dotted path of each matrix
            (`attn.q`) and the rank of its update.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_mlp: int
    n_kv_heads: int = 0
    head_dim: int = 0
    architecture: str = "llama"
    activation: Activation = "silu"
    gated: bool = True
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    pre_norms: bool = True
    post_norms: bool = False
    parallel: bool = False
    qk_norm: Literal["head", "all"] | None = None
    rope: Rope | None = Rope()
    local_rope: Rope | None = None
    attention_scale: float = 0.0
    attention_softcap: float | None = None
    windows: tuple[int | None, ...] = ()
    attention_bias: bool = False
    attention_out_bias: bool | None = None
    mlp_bias: bool = False
    experts: int = 0
    experts_per_token: int = 0
    normalize_experts: bool = False
    embed_scale: bool = False
    tied: bool = True
    logit_softcap: float | None = None
    context: int = 2048
    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None
    lora: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        heads = self.n_kv_heads or self.n_heads
        width = self.head_dim or self.d_model // self.n_heads
        out_bias = self.attention_bias if self.attention_out_bias is None else None
        # What was left open is filled in, so that equal models have equal configs.
        object.__setattr__(self, "n_kv_heads", heads)
        object.__setattr__(self, "head_dim", width)
        object.__setattr__(self, "attention_scale", self.attention_scale or width**-0.5)
        if out_bias is not None:
            object.__setattr__(self, "attention_out_bias", out_bias)
        if self.n_heads % heads:
            raise ValueError(f"n_heads={self.n_heads} is no multiple of n_kv_heads={heads}")
        for rope in (self.rope, self.local_rope):
            if rope is not None and (rope.dim or width) % 2:
                raise ValueError(f"{rope.dim or width} coordinates are odd; RoPE rotates pairs")
        if self.windows and len(self.windows) != self.n_layers:
            raise ValueError(f"{len(self.windows)} windows for {self.n_layers} layers")
        if self.experts_per_token > self.experts:
            raise ValueError(f"{self.experts_per_token} of {self.experts} experts for each token")
