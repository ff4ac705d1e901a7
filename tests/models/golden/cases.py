"""Small random models of transformers; needs torch."""

import torch
import transformers

_SMALL = dict(vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=2)
_HEADS = dict(num_attention_heads=4, num_key_value_heads=2)
_NO_TOKENS = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
_GPT2 = dict(vocab_size=29, n_embd=16, n_inner=24, n_layer=2, n_head=4, n_positions=24)
_LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=100.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=2.0,
    original_max_position_embeddings=24,
)
_LONGROPE = dict(
    rope_type="longrope",
    rope_theta=100.0,
    partial_rotary_factor=0.5,
    short_factor=[1.0, 1.5],
    long_factor=[2.0, 5.0],
)
_GEMMA3_ROPE = dict(
    full_attention=dict(rope_type="linear", rope_theta=1000.0, factor=4.0),
    sliding_attention=dict(rope_type="default", rope_theta=100.0),
)
_LOCAL_GLOBAL = ["sliding_attention", "full_attention"]
_MOE = dict(moe_intermediate_size=16, num_experts=5, num_experts_per_tok=2)
# Soft caps are low, so that they bend the scores and logits of such small models.
_CAPS = dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
_VISION = dict(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    image_size=28,
    patch_size=14,
)

# name -> (family, config)
CASES = {
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "gpt2_untied_relu_unscaled": (
        "GPT2LMHeadModel",
        _GPT2
        | dict(activation_function="relu", scale_attn_weights=False, tie_word_embeddings=False),
    ),
    "gpt_neox_parallel": (
        "GPTNeoXForCausalLM",
        dict(
            num_attention_heads=2, rope_parameters=dict(rope_theta=50.0, partial_rotary_factor=0.5)
        ),
    ),
    "gpt_neox_sequential_tied": (
        "GPTNeoXForCausalLM",
        dict(
            num_attention_heads=4,
            use_parallel_residual=False,
            attention_bias=False,
            hidden_act="gelu_fast",
            tie_word_embeddings=True,
            rope_parameters=dict(rope_theta=50.0, partial_rotary_factor=1.0),
        ),
    ),
    "llama_gqa_untied_llama3": ("LlamaForCausalLM", _HEADS | dict(rope_parameters=_LLAMA3)),
    "llama_mha_tied_biases": (
        "LlamaForCausalLM",
        dict(num_attention_heads=2, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    ),
    "llama_one_layer_mqa": (
        "LlamaForCausalLM",
        dict(num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=1, head_dim=10),
    ),
    "mistral_window": ("MistralForCausalLM", _HEADS | dict(head_dim=6, sliding_window=4)),
    "mistral_full": ("MistralForCausalLM", _HEADS | dict(sliding_window=None)),
    "qwen2_window": (
        "Qwen2ForCausalLM",
        _HEADS
        | dict(
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
            tie_word_embeddings=True,
        ),
    ),
    "qwen2_untied": ("Qwen2ForCausalLM", _HEADS),
    "qwen3": ("Qwen3ForCausalLM", _HEADS | dict(head_dim=6)),
    "qwen3_window_biases": (
        "Qwen3ForCausalLM",
        _HEADS
        | dict(
            head_dim=4,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=3,
            layer_types=_LOCAL_GLOBAL,
        ),
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        _HEADS | _MOE | dict(head_dim=6, norm_topk_prob=True),
    ),
    "qwen3_moe_unnormalized": (
        "Qwen3MoeForCausalLM",
        _HEADS | _MOE | dict(head_dim=4, num_experts_per_tok=3, tie_word_embeddings=True),
    ),
    "gemma": (
        "GemmaForCausalLM",
        dict(num_attention_heads=4, num_key_value_heads=1, head_dim=6),
    ),
    "gemma2_window_caps": (
        "Gemma2ForCausalLM",
        _HEADS
        | _CAPS
        | dict(num_hidden_layers=3, head_dim=6, query_pre_attn_scalar=9, sliding_window=4),
    ),
    "gemma2_untied_no_caps": (
        "Gemma2ForCausalLM",
        dict(
            num_attention_heads=2,
            num_key_value_heads=1,
            num_hidden_layers=3,
            head_dim=8,
            query_pre_attn_scalar=8,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
            sliding_window=3,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            tie_word_embeddings=False,
        ),
    ),
    "gemma2_full_biases": (
        "Gemma2ForCausalLM",
        _CAPS
        | dict(
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=4,
            sliding_window=64,
            attention_bias=True,
        ),
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        _HEADS
        | dict(
            head_dim=6,
            query_pre_attn_scalar=9,
            sliding_window=4,
            layer_types=_LOCAL_GLOBAL,
            rope_parameters=_GEMMA3_ROPE,
            final_logit_softcapping=3.0,
        ),
    ),
    "gemma3_images": (
        "Gemma3ForConditionalGeneration",
        _HEADS | dict(head_dim=4, query_pre_attn_scalar=4, sliding_window=5),
    ),
    "olmo2": ("Olmo2ForCausalLM", _HEADS),
    "olmo2_tied_biases": (
        "Olmo2ForCausalLM",
        dict(num_attention_heads=2, attention_bias=True, tie_word_embeddings=True),
    ),
    "phi3_longrope": (
        "Phi3ForCausalLM",
        _HEADS
        | dict(
            hidden_size=32,
            original_max_position_embeddings=8,
            max_position_embeddings=32,
            rope_parameters=_LONGROPE,
        ),
    ),
    "phi3_longrope_short": (
        "Phi3ForCausalLM",
        _HEADS
        | dict(
            hidden_size=32,
            original_max_position_embeddings=32,
            max_position_embeddings=64,
            rope_parameters=_LONGROPE | dict(attention_factor=1.25),
        ),
    ),
    "phi3_window_tied": (
        "Phi3ForCausalLM",
        dict(num_attention_heads=2, sliding_window=4, tie_word_embeddings=True),
    ),
}
# Those that come as folders beside this file, for where there is no torch.
GOLDEN = (
    "gpt2",
    "gpt_neox_parallel",
    "llama_gqa_untied_llama3",
    "llama_mha_tied_biases",
    "mistral_window",
    "qwen2_window",
    "qwen3",
    "qwen3_moe",
    "gemma",
    "gemma2_window_caps",
    "gemma2_untied_no_caps",
    "gemma3_text",
    "olmo2",
    "phi3_longrope",
)


def build(name):
    """Returns the case's model with weights large enough for every part to matter."""
    class_name, values = CASES[name]
    cls = getattr(transformers, class_name)
    config = _NO_TOKENS | ({} if "n_embd" in values else _SMALL) | values
    if class_name == "Gemma3ForConditionalGeneration":
        config = dict(text_config=config, vision_config=_VISION, image_token_index=28)
    # A copy: configs change the dicts that they are given.
    model = cls(cls.config_class(**_copy(config)))
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            start = parameter.mean().round() if parameter.ndim == 1 else 0.0
            # Rounded here, as `model.to(bfloat16)` would also round the table of RoPE frequencies.
            parameter.copy_((start + scale * noise).to(torch.bfloat16))
    model.set_attn_implementation("eager")
    return model.eval()


def tokens(name, batch=2, length=11):
    """Returns token ids for a case; the last id is left out, which may stand for an image."""
    generator = torch.Generator().manual_seed(1000 + sum(map(ord, name)))
    return torch.randint(28, (batch, length), generator=generator)


def _copy(value):
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, dict) else value
