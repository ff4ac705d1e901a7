"""Writes the golden folders beside this file; needs torch.

`python tests/models/golden/write.py` makes, for each golden case, a model as the hub has it
(bfloat16 weights) and expected.safetensors (float32 results of torch).
"""

import json
import shutil
from pathlib import Path

import torch
from cases import GOLDEN, build, tokens
from record import gradients, record
from safetensors.torch import load_file, save_file

PARTS = ("resid_pre", "attn_out", "attn.q", "attn.k", "attn.v", "attn.z", "mlp.post")
# Equal to others, or sums of them; test_golden.py makes them again.
_DERIVED = ("resid_pre", "resid_mid", "attn_in", "mlp_in")


def write(name, folder):
    """Writes a golden folder."""
    model, ids = build(name), tokens(name)
    values = record(model, ids)
    grads = {
        f"gradient.{site}": value.contiguous()
        for site, value in gradients(model, ids, PARTS).items()
        if site.startswith("blocks.0.")
    }
    shutil.rmtree(folder, ignore_errors=True)
    # One of them in several files with an index, as large models come.
    several = {"max_shard_size": "6KB"} if name == "gemma2_window_caps" else {}
    model.to(torch.bfloat16).save_pretrained(folder, **several)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if name in _AS_ON_HUB:
        path = folder / "model.safetensors"
        save_file(_AS_ON_HUB[name](load_file(path)), path, metadata={"format": "pt"})
    kept = {
        site: value.contiguous() for site, value in values.items() if not site.endswith(_DERIVED)
    }
    save_file(kept | grads | {"tokens": ids.to(torch.int32)}, folder / "expected.safetensors")


def _gpt2_on_hub(tensors):
    """The first files have no prefix, and causal masks among the weights."""
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 24, 24).tril() for i in range(2)}
    return {name.removeprefix("transformer."): t for name, t in tensors.items()} | masks


def _neox_on_hub(tensors):
    """Pythia's files have causal masks and rotary frequencies among the weights."""
    for i in range(2):
        at = f"gpt_neox.layers.{i}.attention"
        tensors[f"{at}.bias"] = torch.ones(1, 1, 24, 24, dtype=torch.bool).tril()
        tensors[f"{at}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{at}.rotary_emb.inv_freq"] = torch.ones(2)
    return tensors


_AS_ON_HUB = {"gpt2": _gpt2_on_hub, "gpt_neox_parallel": _neox_on_hub}

if __name__ == "__main__":
    for case in GOLDEN:
        write(case, Path(__file__).parent / case)
