"""What every library is given: the same random GPT-2 weights, tokens, vectors and dictionary.

Weights go to a Hugging Face directory that each library reads in its own way; everything else is
numpy. No torch, no jax, no tokenizer and no network are needed to make them.
"""

import json
import pathlib
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file


class Shape(NamedTuple):
    """Sizes of a benchmark.

    Attributes:
        layers: Blocks of the model, N.
        width: Width of the residual stream, D.
        heads: Attention heads a block.
        vocab: Vocabulary, V.
        tokens: Tokens of a sequence, T.
        prompt: Tokens of a prompt to go on from.
        new: Tokens to generate.
        pairs: Sequences that the two models are compared on.
        chunk: Sequences of them in one forward pass.
        latents: Latents of the SAE.
        k: Active latents a token.
    """

    layers: int
    width: int
    heads: int
    vocab: int
    tokens: int
    prompt: int
    new: int
    pairs: int
    chunk: int
    latents: int
    k: int


SHAPES = {
    "minute": Shape(2, 16, 2, 50, 6, 3, 4, 4, 2, 32, 4),
    "tiny": Shape(4, 128, 4, 1000, 64, 16, 32, 256, 32, 4096, 32),
    "gpt2": Shape(12, 768, 12, 50257, 16, 8, 32, 32, 8, 4096, 32),
}
"""`minute` is for tests; the other two are those that published figures are about."""


class Inputs(NamedTuple):
    """What the workloads read besides the weights.

    Attributes:
        tokens: A batch of sequences, `[8, T]`.
        clean: The sequence that activations are taken from, `[1, T]`.
        corrupt: The sequence that they are put into, `[1, T]`.
        pairs: Sequences for the diff of two models, `[pairs, T]`.
        answers: Two token ids; the metric is the first's logit minus the second's.
        steering: Vector that is added to the residual stream, `[D]`.
        encoder: Encoder of the SAE, `[D, L]`.
        encoder_bias: Its bias, `[L]`.
        decoder: Decoder with rows of norm 1, `[L, D]`.
        ablated: Latents to switch off, `[L / 4]`.
    """

    tokens: np.ndarray
    clean: np.ndarray
    corrupt: np.ndarray
    pairs: np.ndarray
    answers: np.ndarray
    steering: np.ndarray
    encoder: np.ndarray
    encoder_bias: np.ndarray
    decoder: np.ndarray
    ablated: np.ndarray


def make_inputs(shape: Shape, seed: int = 0) -> Inputs:
    """Draws the inputs of all workloads."""
    rng = np.random.default_rng(seed)

    def token_ids(*size: int) -> np.ndarray:
        return rng.integers(0, shape.vocab, size)

    def normal(*size: int) -> np.ndarray:
        return rng.standard_normal(size).astype(np.float32)

    decoder = normal(shape.latents, shape.width)
    decoder /= np.linalg.norm(decoder, axis=-1, keepdims=True)
    return Inputs(
        tokens=token_ids(8, shape.tokens),
        clean=token_ids(1, shape.tokens),
        corrupt=token_ids(1, shape.tokens),
        pairs=token_ids(shape.pairs, shape.tokens),
        answers=rng.choice(shape.vocab, 2, replace=False),
        steering=normal(shape.width),
        encoder=np.ascontiguousarray(decoder.T),
        encoder_bias=0.01 * normal(shape.latents),
        decoder=decoder,
        ablated=np.sort(rng.choice(shape.latents, shape.latents // 4, replace=False)),
    )


def write_models(folder: pathlib.Path, shape: Shape, seed: int = 1) -> tuple[pathlib.Path, ...]:
    """Writes a base and a fine-tune (the base with noise) as Hugging Face directories.

    Returns:
        The folders of both.
    """
    base = _weights(shape, np.random.default_rng(seed))
    rng = np.random.default_rng(seed + 1)
    ft = {name: w + _noise(name, w, rng) for name, w in base.items()}
    folders = (folder / "base", folder / "ft")
    for path, weights in zip(folders, (base, ft), strict=True):
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(_config(shape)))
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return folders


def _config(shape: Shape) -> dict[str, object]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": shape.layers,
        "n_embd": shape.width,
        "n_head": shape.heads,
        "n_positions": 128,
        "vocab_size": shape.vocab,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _weights(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    d = shape.width
    # Wider than GPT-2's own start, so that a patch moves the logits by far more than rounding
    # does and greedy tokens depend on what was read before.
    matrices = {"attn.c_attn": 3 * d, "attn.c_proj": d, "mlp.c_fc": 4 * d, "mlp.c_proj": d}
    inputs = {"mlp.c_proj": 4 * d}

    def normal(std: float, *size: int) -> np.ndarray:
        return (std * rng.standard_normal(size)).astype(np.float32)

    weights = {
        "transformer.wte.weight": normal(d**-0.5, shape.vocab, d),
        "transformer.wpe.weight": normal(d**-0.5, 128, d),
        "transformer.ln_f.weight": 1 + normal(0.1, d),
        "transformer.ln_f.bias": normal(0.1, d),
    }
    for layer in range(shape.layers):
        block = f"transformer.h.{layer}"
        for name, out in matrices.items():
            fan_in = inputs.get(name, d)
            weights[f"{block}.{name}.weight"] = normal(fan_in**-0.5, fan_in, out)
            weights[f"{block}.{name}.bias"] = normal(0.02, out)
        for name in ("ln_1", "ln_2"):
            weights[f"{block}.{name}.weight"] = 1 + normal(0.1, d)
            weights[f"{block}.{name}.bias"] = normal(0.1, d)
    return weights


def _noise(name: str, weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = 0.1 * weight.std() * rng.standard_normal(weight.shape).astype(np.float32)
    return noise.astype(np.float32) if ".h." in name else np.zeros_like(weight)
