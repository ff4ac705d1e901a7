"""Configs as the hub has them, with old names of entries: what is read, and the known sizes."""

import json

import pytest

from jaxdiff.models import load_spec, parameters

_LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_LONG = {"long_factor": [1.5] * 48, "short_factor": [1.0] * 48, "type": "longrope"}


def _shape(hidden, layers, heads, kv_heads, inner, vocab, **more):
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
        **more,
    }


# name -> (config.json, published number of parameters, fields of the spec)
MODELS = {
    "gpt2": (
        {
            "model_type": "gpt2",
            "n_ctx": 1024,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "vocab_size": 50257,
            "activation_function": "gelu_new",
        },
        124_439_808,
        {"d_mlp": 3072, "activation": "gelu_tanh", "rope": None, "eos": (50256,)},
    ),
    "EleutherAI/pythia-70m": (
        {
            "model_type": "gpt_neox",
            "hidden_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "intermediate_size": 2048,
            "vocab_size": 50304,
            "rotary_pct": 0.25,
            "rotary_emb_base": 10000,
            "use_parallel_residual": True,
            "tie_word_embeddings": False,
        },
        70_426_624,
        {"rope.dim": 16, "rope.theta": 10000.0, "parallel": True, "activation": "gelu"},
    ),
    "meta-llama/Llama-2-7b": (
        {"model_type": "llama", "rope_scaling": None, **_shape(4096, 32, 32, 32, 11008, 32000)},
        6_738_415_616,
        {"rope.kind": "default", "tied": False},
    ),
    "meta-llama/Llama-3.2-1B": (
        {
            "model_type": "llama",
            "rope_scaling": _LLAMA3,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            **_shape(2048, 16, 32, 8, 8192, 128256, head_dim=64),
        },
        1_235_814_400,
        {"rope.kind": "llama3", "rope.theta": 5e5, "rope.factor": 32.0, "rope.context": 8192},
    ),
    "mistralai/Mistral-7B-v0.1": (
        {
            "model_type": "mistral",
            "sliding_window": 4096,
            "rope_theta": 10000.0,
            **_shape(4096, 32, 32, 8, 14336, 32000),
        },
        7_241_732_096,
        {"windows": (4096,) * 32, "attention_bias": False},
    ),
    "Qwen/Qwen2.5-0.5B": (
        {
            "model_type": "qwen2",
            "use_sliding_window": False,
            "sliding_window": 32768,
            "max_window_layers": 24,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            **_shape(896, 24, 14, 2, 4864, 151936),
        },
        494_032_768,
        {"windows": (), "attention_bias": True, "attention_out_bias": False},
    ),
    "Qwen/Qwen3-0.6B": (
        {
            "model_type": "qwen3",
            "rope_theta": 1000000,
            "tie_word_embeddings": True,
            **_shape(1024, 28, 16, 8, 3072, 151936, head_dim=128),
        },
        596_049_920,
        {"qk_norm": "head", "head_dim": 128, "rope.theta": 1e6},
    ),
    "Qwen/Qwen3-30B-A3B": (
        {
            "model_type": "qwen3_moe",
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            **_shape(2048, 48, 32, 4, 6144, 151936, head_dim=128),
        },
        30_532_122_624,
        {"d_mlp": 768, "experts": 128, "experts_per_token": 8, "normalize_experts": True},
    ),
    "google/gemma-2b": (
        {
            "model_type": "gemma",
            "hidden_act": "gelu",
            "hidden_activation": None,
            **_shape(2048, 18, 8, 1, 16384, 256000, head_dim=256),
        },
        2_506_172_416,
        {"activation": "gelu_tanh", "embed_scale": True, "norm_offset": 1.0},
    ),
    "google/gemma-2-2b": (
        {
            "model_type": "gemma2",
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            **_shape(2304, 26, 8, 4, 9216, 256000, head_dim=256),
        },
        2_614_341_888,
        {"windows": (4096, None) * 13, "attention_softcap": 50.0, "logit_softcap": 30.0},
    ),
    "google/gemma-3-1b-it": (
        {
            "model_type": "gemma3_text",
            "sliding_window": 512,
            "sliding_window_pattern": 6,
            "rope_theta": 1000000,
            "rope_local_base_freq": 10000,
            **_shape(1152, 26, 4, 1, 6912, 262144, head_dim=256),
        },
        999_885_952,
        {
            "windows": ((512,) * 5 + (None,)) * 4 + (512,) * 2,
            "rope.theta": 1e6,
            "local_rope.theta": 1e4,
        },
    ),
    "google/gemma-3-4b-it": (
        {
            "model_type": "gemma3",
            "eos_token_id": [1, 106],
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152},
        },
        3_880_263_168,
        {
            "rope.kind": "linear",
            "rope.factor": 8.0,
            "local_rope.kind": "default",
            "eos": (1, 106),
            "architecture": "gemma3_text",
        },
    ),
    "allenai/OLMo-2-1124-7B": (
        {
            "model_type": "olmo2",
            "rms_norm_eps": 1e-6,
            "rope_theta": 500000,
            **_shape(4096, 32, 32, 32, 11008, 100352),
        },
        7_298_617_344,
        {"qk_norm": "all", "pre_norms": False, "post_norms": True, "norm_eps": 1e-6},
    ),
    "microsoft/Phi-3-mini-4k-instruct": (
        {
            "model_type": "phi3",
            "sliding_window": 2047,
            "rope_scaling": None,
            **_shape(3072, 32, 32, 32, 8192, 32064),
        },
        3_821_079_552,
        {"windows": (2047,) * 32, "rope.kind": "default"},
    ),
    "microsoft/Phi-4-mini-instruct": (
        {
            "model_type": "phi3",
            "partial_rotary_factor": 0.75,
            "rope_scaling": _LONG,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            **_shape(3072, 32, 24, 8, 8192, 200064),
        },
        3_836_021_760,
        {
            "rope.kind": "longrope",
            "rope.dim": 96,
            "rope.context": 4096,
            "rope.attention_factor": pytest.approx(1.190238),
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_published_models(name, tmp_path):
    config, size, fields = MODELS[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = load_spec(tmp_path)
    assert parameters(spec) == size
    for field, expected in fields.items():
        value = spec
        for part in field.split("."):
            value = getattr(value, part)
        assert value == expected, field
