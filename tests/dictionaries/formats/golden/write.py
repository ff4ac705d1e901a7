"""Writes the golden folders beside this file; needs torch and the peers.

`python tests/dictionaries/formats/golden/write.py`, with sae-lens 6.54.12, eai-sparsify 1.3.3 and
dictionary-learning 0.1.0 installed, makes a folder for each case by the peer's own code: its files,
and expected.safetensors with rows and the peer's latents and reconstructions of them. odd.pt has
tensors as torch writes them in unusual cases.
"""

import json
import shutil
from pathlib import Path

import dictionary_learning.dictionary as dl
import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from sae_lens import saes
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig

WIDTH, LATENTS, K = 4, 7, 2


def shaken(module):
    """Sets every parameter at random, also those that start at zero or in pairs."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if "mag" in name else 0.8))
            if name == "threshold":
                parameter.abs_()
    return module


def expect(folder, module, encode=None):
    """Adds what the peer makes of some rows."""
    x = torch.randn(16, WIDTH)
    with torch.no_grad():
        latents = (encode or module.encode)(x)
        decoded = module(x) if encode is None else module.decode(latents)
    tensors = {"x": x, "latents": latents, "decoded": decoded}
    found = {name: value.float().contiguous() for name, value in tensors.items()}
    save_file(found, folder / "expected.safetensors")


def saelens(folder):
    """Writes one folder for each class, and the settings that are easily missed."""
    plain = {"d_in": WIDTH, "d_sae": LATENTS}
    cases = {
        "standard": (saes.StandardSAE, saes.StandardSAEConfig(**plain)),
        "topk": (saes.TopKSAE, saes.TopKSAEConfig(**plain, k=K, apply_b_dec_to_input=False)),
        "topk_rescaled": (
            saes.TopKSAE,
            saes.TopKSAEConfig(**plain, k=K, rescale_acts_by_decoder_norm=True),
        ),
        "jumprelu": (saes.JumpReLUSAE, saes.JumpReLUSAEConfig(**plain)),
        "gated": (saes.GatedSAE, saes.GatedSAEConfig(**plain)),
    }
    for name, (cls, config) in cases.items():
        sae = shaken(cls(config))
        sae.save_model(folder / f"saelens_{name}")
        expect(folder / f"saelens_{name}", sae)
    config = saes.BatchTopKTrainingSAEConfig(**plain, k=K, rescale_acts_by_decoder_norm=True)
    sae = shaken(saes.BatchTopKTrainingSAE(config))
    sae.topk_threshold += 0.7
    sae.save_inference_model(folder / "saelens_batchtopk")
    inference = saes.SAE.load_from_disk(folder / "saelens_batchtopk")
    expect(folder / "saelens_batchtopk", inference)
    sae.save_model(folder / "saelens_batchtopk_training")
    expect(folder / "saelens_batchtopk_training", inference)


def sparsify(folder):
    """Writes a TopK coder."""
    config = SparseCoderConfig(num_latents=LATENTS, k=K)
    coder = shaken(SparseCoder(WIDTH, config))
    coder.save_to_disk(folder / "sparsify")

    def dense(x):
        found = coder.encode(x)
        return torch.zeros(len(x), LATENTS).scatter(1, found.top_indices, found.top_acts)

    coder.decode = lambda f: f @ coder.W_dec + coder.b_dec
    expect(folder / "sparsify", coder, dense)


def dictionary_learning(folder):
    """Writes one folder for each class."""
    cases = {
        "AutoEncoder": dl.AutoEncoder(WIDTH, LATENTS),
        "AutoEncoderNew": dl.AutoEncoderNew(WIDTH, LATENTS),
        "AutoEncoderTopK": AutoEncoderTopK(WIDTH, LATENTS, K),
        "BatchTopKSAE": BatchTopKSAE(WIDTH, LATENTS, K),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(WIDTH, LATENTS, K, [3, 4]),
        "JumpReluAutoEncoder": dl.JumpReluAutoEncoder(WIDTH, LATENTS),
        "GatedAutoEncoder": dl.GatedAutoEncoder(WIDTH, LATENTS),
    }
    for name, module in cases.items():
        shaken(module)
        if "Batch" in name:
            module.threshold.fill_(0.5)
        path = folder / f"dictionary_learning_{name}"
        path.mkdir()
        torch.save(module.state_dict(), path / "ae.pt")
        trainer = {"dict_class": name, "activation_dim": WIDTH, "dict_size": LATENTS, "k": K}
        (path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
        expect(path, load_dictionary(str(path), "cpu")[0])


def odd(folder):
    """Writes tensors of all dtypes, strides and storages, and what surrounds them."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    names = ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    tensors = {
        "base": base,
        "transposed": base.T,
        "every_other": base[:, ::2],
        "row_of_it": base[2],
        "parameter": torch.nn.Parameter(base + 0.5),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 3),
        **{name: torch.arange(5).to(getattr(torch, name)) for name in names},
    }
    state = torch.nn.Linear(2, 3).state_dict()
    torch.save({**tensors, "nested": state, "name": "TopK", "k": 5}, folder / "odd.pt")
    kept = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    save_file(kept | {f"nested.{n}": v for n, v in state.items()}, folder / "odd.safetensors")


if __name__ == "__main__":
    torch.manual_seed(0)
    here = Path(__file__).parent
    for old in here.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    for part in (saelens, sparsify, dictionary_learning, odd):
        part(here)
