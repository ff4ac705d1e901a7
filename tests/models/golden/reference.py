"""Small models of transformers with what they compute at every site; needs torch.

`python tests/models/golden/reference.py` writes the golden folders beside this file: a model as
`save_pretrained` leaves it (bfloat16 weights) and expected.safetensors (float32 results).
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

_SMALL = dict(vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=3)
_LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=100.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=2.0,
    original_max_position_embeddings=24,
)
# Soft caps are low, so that they bend the scores and logits of such small models.
_CAPS = dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0)

LLAMA, GEMMA2 = "llama", "gemma2"
# name -> (family, config); the first four are the golden ones.
CASES = {
    "llama_gqa_untied_llama3": (
        LLAMA,
        dict(num_attention_heads=4, num_key_value_heads=2, rope_parameters=_LLAMA3),
    ),
    "llama_mha_tied_biases": (
        LLAMA,
        dict(num_attention_heads=2, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    ),
    "gemma2_window_caps": (
        GEMMA2,
        dict(
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=6,
            query_pre_attn_scalar=9,
            sliding_window=4,
            **_CAPS,
        ),
    ),
    "gemma2_untied_no_caps": (
        GEMMA2,
        dict(
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            query_pre_attn_scalar=8,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
            sliding_window=3,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            tie_word_embeddings=False,
        ),
    ),
    "llama_one_layer_mqa": (
        LLAMA,
        dict(num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=1, head_dim=10),
    ),
    "gemma2_full_biases": (
        GEMMA2,
        dict(
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=4,
            sliding_window=64,
            attention_bias=True,
            **_CAPS,
        ),
    ),
}
GOLDEN = list(CASES)[:4]


def build(name):
    """Returns the case's model with weights large enough for every part to matter."""
    family, config = CASES[name]
    values = _SMALL | {"pad_token_id": None} | config
    generator = torch.Generator().manual_seed(list(CASES).index(name))
    if family == LLAMA:
        model = LlamaForCausalLM(LlamaConfig(**values))
    else:
        model = Gemma2ForCausalLM(Gemma2Config(**values))
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
    """Returns token ids for a case."""
    generator = torch.Generator().manual_seed(1000 + list(CASES).index(name))
    return torch.randint(_SMALL["vocab_size"], (batch, length), generator=generator)


def record(model, ids):
    """Runs a model and returns what it computes at every site, by jaxdiff's names."""
    found, handles = {}, []

    def keep(module, name):
        def hook(module, args, output):
            found[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        handles.append(module.register_forward_hook(hook))

    post_norms = model.config.model_type == GEMMA2
    keep(model.model.embed_tokens, "embed")
    keep(model.model.norm, "final_norm")
    for i, layer in enumerate(model.model.layers):
        keep(layer, f"blocks.{i}.resid_post")
        attn = layer.post_attention_layernorm if post_norms else layer.self_attn
        keep(attn, f"blocks.{i}.attn_out")
        mlp = layer.post_feedforward_layernorm if post_norms else layer.mlp
        keep(mlp, f"blocks.{i}.mlp_out")
    with torch.no_grad():
        found["logits"] = model(ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    for i in range(model.config.num_hidden_layers):
        pre = found[f"blocks.{i - 1}.resid_post"] if i else found["embed"]
        found[f"blocks.{i}.resid_pre"] = pre.clone()
        found[f"blocks.{i}.resid_mid"] = pre + found[f"blocks.{i}.attn_out"]
    return found


def write(name, folder):
    """Writes a golden folder."""
    model, ids = build(name), tokens(name)
    expected = {"tokens": ids.to(torch.int32)} | record(model, ids)
    # One of them in several files with an index, as large models come.
    several = {"max_shard_size": "6KB"} if name == "gemma2_window_caps" else {}
    model.to(torch.bfloat16).save_pretrained(folder, **several)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    kept = {k: v for k, v in expected.items() if not k.endswith(("resid_pre", "resid_mid"))}
    save_file(kept, folder / "expected.safetensors")


if __name__ == "__main__":
    for case in GOLDEN:
        write(case, Path(__file__).parent / case)
