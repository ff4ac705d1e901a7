"""Each format's files, and its encoder and decoder by the format's own convention, in float64.

Nothing here knows jaxdiff: a case writes files with the format's exact keys and says what the peer
makes of rows x [R, M, D].
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

MODELS, WIDTH, LATENTS, K = 2, 4, 9, 3
TAU = 0.6


@dataclass
class Case:
    """Files of a dictionary, and what their tool makes of `x`."""

    files: dict[str, Any]
    x: np.ndarray
    latents: np.ndarray
    decoded: np.ndarray

    def write(self, folder, save_pt):
        """Writes the files; `save_pt(path, tensors)` those of torch."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".json":
                path.write_text(json.dumps(content))
            elif path.suffix == ".yaml":
                path.write_text(yaml.safe_dump(content))
            elif path.suffix == ".npz":
                np.savez(path, **content)
            elif path.suffix == ".pt":
                save_pt(path, content)
            else:
                save_file({n: np.asarray(v, order="C") for n, v in content.items()}, path)


def drawn(seed, **shapes):
    """Draws float32 tensors, biases of a size that matters."""
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0, 0.7, shape).astype(np.float32) for n, shape in shapes.items()}


def rows(models, seed=1):
    """Draws rows."""
    return np.random.default_rng(seed).normal(0, 1.2, (24, models, WIDTH)).astype(np.float32)


def relu(x):
    """Returns the positive part."""
    return np.maximum(x, 0.0)


def top(values, keys, k):
    """Keeps the values of the k largest keys along the last axis."""
    kth = np.sort(keys, axis=-1)[..., -k][..., None]
    return np.where(keys >= kth, values, 0.0)


def _f64(t):
    return {name: np.asarray(v, np.float64) for name, v in t.items()}


def _case(files, x, latents, decoded):
    return Case(files, x, latents.astype(np.float64), decoded)


def crosscoder(*, code=None, local=False, prefix="", normalised=False, identifier=True):
    """science-of-finetuning; `code` is the id of the code normalisation of a BatchTopK one."""
    shapes = {"encoder.weight": (MODELS, WIDTH, LATENTS), "encoder.bias": (LATENTS,)}
    shapes |= {"decoder.weight": (MODELS, LATENTS, WIDTH), "decoder.bias": (MODELS, WIDTH)}
    t, x = drawn(2, **shapes), rows(MODELS)
    a, given = _f64(t), dict(t)
    shift, scale = np.zeros((MODELS, WIDTH)), np.ones(MODELS)
    given["target_rms"] = np.float32(1.0)
    given["activation_mean"] = np.full((MODELS, WIDTH), np.nan, np.float32)
    given["activation_std"] = np.full((MODELS, WIDTH), np.nan, np.float32)
    given["activation_global_scale"] = np.ones(MODELS, np.float32)
    if normalised:
        shift, std = (v.astype(np.float64) for v in drawn(3, m=(2, WIDTH), s=(2, WIDTH)).values())
        given["activation_mean"], given["activation_std"] = (
            shift.astype(np.float32),
            np.abs(std).astype(np.float32),
        )
        scale = 1.5 / np.sqrt(np.sum(std**2, axis=-1) + 1e-8)
        given["activation_global_scale"] = scale.astype(np.float32)
    z = (x - shift) * scale[:, None]
    f = relu(np.einsum("bld,ldf->bf", z, a["encoder.weight"]) + a["encoder.bias"])
    if code is not None:
        norms = np.linalg.norm(a["decoder.weight"], axis=2)  # [M, L]
        joint = np.sqrt(np.sum(norms**2, axis=0))
        weights = {1: norms.sum(0), 2: joint, 3: joint + 0.1 * norms.sum(0), 4: 1.0, 5: norms}[code]
        tau = np.array([0.6, 0.9]) if code == 5 else np.array(0.9)
        given["k"], given["threshold"] = np.int32(K), tau.astype(np.float32)
        if code == 5:
            f = f[:, None] * (f[:, None] * weights > tau[None, :, None])
        else:
            f = f * (f * weights > tau)
    if identifier:
        given["code_normalization_id"] = np.int64(code or 1)
    axes = "blf,lfd->bld" if f.ndim == 3 else "bf,lfd->bld"
    decoded = np.einsum(axes, f, a["decoder.weight"]) + a["decoder.bias"]
    decoded = decoded / scale[:, None] + shift
    given = {prefix + name: np.asarray(value) for name, value in given.items()}
    config = {"activation_dim": WIDTH, "dict_size": LATENTS, "num_layers": MODELS}
    if local:
        files = {"model_final.pt": given, "config.json": {"trainer": config, "buffer": {}}}
    else:
        files = {"model.safetensors": given, "config.json": config | {"k": K}}
    return _case(files, x, f, decoded)


def fork_sae(normalised):
    """The BatchTopK SAE of the same fork, which subtracts b_dec and has a normaliser."""
    shapes = {"encoder.weight": (LATENTS, WIDTH), "encoder.bias": (LATENTS,), "b_dec": (WIDTH,)}
    t, x = drawn(4, **shapes, **{"decoder.weight": (WIDTH, LATENTS)}), rows(1)
    a = _f64(t)
    mean = drawn(5, m=(WIDTH,))["m"] if normalised else np.full(WIDTH, np.nan, np.float32)
    scale = 0.7 if normalised else 1.0
    t |= {"k": np.int32(K), "threshold": np.float32(TAU), "target_rms": np.float32(1)}
    t |= {"activation_mean": mean, "activation_std": np.abs(mean)}
    t["activation_global_scale"] = np.float32(scale)
    shift = np.nan_to_num(mean)
    z = (x[:, 0] - shift) * np.float32(scale) - a["b_dec"]
    f = relu(z @ a["encoder.weight"].T + a["encoder.bias"])
    f = f * (f > np.float32(TAU))
    decoded = (f @ a["decoder.weight"].T + a["b_dec"]) / np.float32(scale) + shift
    return _case({"model.safetensors": t, "config.json": {}}, x, f, decoded[:, None])


def kissane(names=("cfg.json", "cc_weights.pt")):
    """Crosscoder scripts: W_dec has the latents first."""
    shapes = {"W_enc": (MODELS, WIDTH, LATENTS), "W_dec": (LATENTS, MODELS, WIDTH)}
    t, x = drawn(6, **shapes, b_enc=(LATENTS,), b_dec=(MODELS, WIDTH)), rows(MODELS)
    a = _f64(t)
    f = relu(np.einsum("bnd,ndh->bh", x, a["W_enc"]) + a["b_enc"])
    decoded = np.einsum("bh,hnd->bnd", f, a["W_dec"]) + a["b_dec"]
    config = {"dict_size": LATENTS, "d_in": WIDTH, "enc_dtype": "fp32"}
    return _case({names[0]: config, names[1]: t}, x, f, decoded)


def crosscode(kind, *, biases=True, renamed=False):
    """crosscode over two models at one hookpoint, or one model at two."""
    axes = (1, 2) if renamed else (2, 1)
    shapes = {"_W_enc_XiDiL": (*axes, WIDTH, LATENTS), "_W_dec_LXoDo": (LATENTS, *axes, WIDTH)}
    if biases:
        shapes |= {"b_enc_L": (LATENTS,), "_b_dec_XoDo": (*axes, WIDTH)}
    t, x = drawn(7, **shapes), rows(MODELS)
    a = _f64(t)
    a = {"b_enc_L": 0.0, "_b_dec_XoDo": np.zeros((*axes, WIDTH)), **a}
    wide = x.reshape(-1, *axes, WIDTH)
    pre = np.einsum("bmpd,mpdl->bl", wide, a["_W_enc_XiDiL"]) + a["b_enc_L"]
    classname = {"relu": "ReLUActivation", "topk": "TopkActivation"}.get(
        kind, "AnthropicSTEJumpReLUActivation"
    )
    config = {"relu": {}, "topk": {"k": 2}}.get(kind, {"size": LATENTS, "bandwidth": 2.0})
    f = {"relu": relu(pre), "topk": top(pre, pre, 2)}.get(kind)
    if kind == "jumprelu":
        threshold = np.linspace(0.2, 0.9, LATENTS)
        # The attribute has had both names.
        name = "activation_fn.log_threshold_L" if renamed else "_activation_fn.log_threshold_L"
        t[name] = np.log(threshold).astype(np.float32)
        f = pre * (pre > threshold)
    decoded = np.einsum("bl,lmpd->bmpd", f, a["_W_dec_LXoDo"]) + a["_b_dec_XoDo"]
    t |= {f"folded_scaling_factors_{n}": np.zeros(axes, np.float32) for n in ("in_Xi", "out_Xo")}
    t["is_folded"] = np.asarray(False)
    settings = {"n_models": axes[0], "n_hookpoints": axes[1], "d_model": WIDTH}
    settings |= {"n_latents": LATENTS, "activation_fn": {"classname": classname, "cfg": config}}
    files = {"model_cfg.yaml": settings, "model.pt": t}
    return _case(files, x, f, decoded.reshape(x.shape))


def gemma_scope(lower=False, folder=""):
    """Gemma Scope 1; of the embedding, on rows of the model's embed site."""
    t = drawn(8, W_enc=(WIDTH, LATENTS), W_dec=(LATENTS, WIDTH), b_enc=(LATENTS,), b_dec=(WIDTH,))
    t["threshold"] = np.linspace(0.0, 1.0, LATENTS, dtype=np.float32)
    a, x = _f64(t), rows(1)
    factor = WIDTH**0.5 if "embedding" in folder else 1.0
    pre = (x[:, 0] / factor) @ a["W_enc"] + a["b_enc"]
    f = relu(pre) * (pre > a["threshold"])
    decoded = (f @ a["W_dec"] + a["b_dec"]) * factor
    named = {n.lower() if lower else n: v for n, v in t.items()}
    return _case({f"{folder}params.npz": named}, x, f, decoded[:, None])


def gemma_scope_2(crosscoder):
    """Gemma Scope 2: an SAE, or a weakly causal crosscoder with as many latents a layer."""
    layers, parts = (2, 4) if crosscoder else (1, LATENTS)
    x, files = rows(layers), {"config.json": {"architecture": "jump_relu"}}
    f, decoded = [], np.zeros((24, layers, WIDTH))
    for i in range(layers):
        w_dec = (parts, layers, WIDTH) if crosscoder else (parts, WIDTH)
        t = drawn(9 + i, w_enc=(WIDTH, parts), w_dec=w_dec, b_enc=(parts,), b_dec=(WIDTH,))
        t["threshold"] = np.linspace(0.1, 0.9, parts, dtype=np.float32)
        a = _f64(t)
        pre = x[:, i] @ a["w_enc"] + a["b_enc"]
        f.append(relu(pre) * (pre > a["threshold"]))
        decoded += np.einsum("bf,fmd->bmd", f[-1], a["w_dec"].reshape(parts, layers, WIDTH))
        decoded[:, i] += a["b_dec"]
        files[f"params_layer_{i}.safetensors" if crosscoder else "params.safetensors"] = t
    return _case(files, x, np.concatenate(f, axis=1), decoded)


def llama_scope(act="jumprelu", by_norm=False, centred=False):
    """Llama Scope: scaled activations, one threshold that is meant for unscaled ones."""
    shapes = {"encoder.weight": (LATENTS, WIDTH), "encoder.bias": (LATENTS,)}
    t = drawn(11, **shapes, **{"decoder.weight": (WIDTH, LATENTS), "decoder.bias": (WIDTH,)})
    a, x, average = _f64(t), rows(1), 5.5
    factor = WIDTH**0.5 / average
    z = x[:, 0] * factor - (a["decoder.bias"] if centred else 0.0)
    pre = z @ a["encoder.weight"].T + a["encoder.bias"]
    keys = pre * (np.linalg.norm(a["decoder.weight"], axis=0) if by_norm else 1.0)
    f = top(relu(pre), relu(keys), K) if act == "topk" else relu(pre) * (keys > 0.9 * factor)
    decoded = (f @ a["decoder.weight"].T + a["decoder.bias"]) / factor
    settings = {
        "d_model": WIDTH,
        "d_sae": LATENTS,
        "act_fn": act,
        "jump_relu_threshold": 0.9,
        "top_k": K,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": average, "out": average},
        "sparsity_include_decoder_norm": by_norm,
        "apply_decoder_bias_to_pre_encoder": centred,
        "hook_point_in": "blocks.8.hook_resid_post",
        "hook_point_out": "blocks.8.hook_resid_post",
    }
    files = {"hyperparams.json": settings, "checkpoints/final.safetensors": t}
    return _case(files, x, f, decoded[:, None])


def llamascopium(act, *, heads=1, by_norm=True, folded=False):
    """lm-saes: an SAE, or a crosscoder whose latents are active head by head."""
    lead = () if heads == 1 else (heads,)
    shapes = {"W_E": (*lead, WIDTH, LATENTS), "b_E": (*lead, LATENTS)}
    t = drawn(12, **shapes, W_D=(*lead, LATENTS, WIDTH), b_D=(*lead, WIDTH))
    a = {name: v.reshape(heads, *v.shape[len(lead) :]) for name, v in _f64(t).items()}
    x, average = rows(heads), np.array([2.5, 3.5])[:heads]
    factor = np.ones(heads) if folded else WIDTH**0.5 / average
    sites = [f"blocks.{i}.hook_resid_post" for i in range(heads)]
    z = x * factor[:, None]
    pre = np.einsum("bhd,hdf->bf", z, a["W_E"]) + a["b_E"].sum(axis=0)
    norms = np.linalg.norm(a["W_D"], axis=-1) if by_norm else np.ones((heads, LATENTS))
    keys, theta = pre[:, None] * norms, np.linspace(0.2, 1.0, LATENTS)
    if act == "topk":
        acts = top(relu(keys), relu(keys), K)
    else:
        acts = keys * (keys > (theta if act == "jumprelu" else 0.0))
    f = acts / norms
    decoded = (np.einsum("bhf,hfd->bhd", f, a["W_D"]) + a["b_D"]) / factor[:, None]
    if act == "jumprelu":
        t["activation_function.log_jumprelu_threshold"] = np.log(theta).astype(np.float32)
    for site, value in zip(sites, average, strict=True):
        t[f"dataset_average_activation_norm.{site}"] = np.float32(value)
    settings = {"d_model": WIDTH, "expansion_factor": LATENTS / WIDTH, "act_fn": act, "top_k": K}
    settings |= {"sparsity_include_decoder_norm": by_norm, "use_decoder_bias": True}
    settings["norm_activation"] = "inference" if folded else "dataset-wise"
    if heads == 1:
        settings |= {"sae_type": "sae", "hook_point_in": sites[0], "hook_point_out": sites[0]}
        f = f[:, 0]
    else:
        settings |= {"sae_type": "crosscoder", "hook_points": sites}
    return _case({"config.json": settings, "sae_weights.safetensors": t}, x, f, decoded)


def openai():
    """OpenAI: one file; the bias is subtracted."""
    shapes = {"pre_bias": (WIDTH,), "latent_bias": (LATENTS,), "encoder.weight": (LATENTS, WIDTH)}
    t, x = drawn(13, **shapes, **{"decoder.weight": (WIDTH, LATENTS)}), rows(1)
    a = _f64(t)
    f = relu((x[:, 0] - a["pre_bias"]) @ a["encoder.weight"].T + a["latent_bias"])
    decoded = f @ a["decoder.weight"].T + a["pre_bias"]
    t |= {"stats_last_nonzero": np.zeros(LATENTS, np.int64), "activation": "ReLU"}
    return _case({"autoencoder.pt": t}, x, f, decoded[:, None])


CASES = {
    "science_of_finetuning": {
        "l1": lambda: crosscoder(),
        "l1_old": lambda: crosscoder(local=True, prefix="_orig_mod.", identifier=False),
        "l1_normalised": lambda: crosscoder(normalised=True),
        **{f"batch_topk_{code}": (lambda code=code: crosscoder(code=code)) for code in range(1, 6)},
        "batch_topk_normalised": lambda: crosscoder(code=1, normalised=True),
        "batch_topk_local": lambda: crosscoder(code=2, local=True),
        "sae": lambda: fork_sae(normalised=False),
        "sae_normalised": lambda: fork_sae(normalised=True),
    },
    "kissane": {"hub": kissane},
    "crosscode": {
        "relu": lambda: crosscode("relu"),
        "topk": lambda: crosscode("topk"),
        "jumprelu": lambda: crosscode("jumprelu"),
        "jumprelu_hookpoints": lambda: crosscode("jumprelu", renamed=True),
        "no_biases": lambda: crosscode("relu", biases=False),
    },
    "gemma_scope": {"upper": gemma_scope, "lower": lambda: gemma_scope(lower=True)},
    "gemma_scope_2": {
        "sae": lambda: gemma_scope_2(False),
        "crosscoder": lambda: gemma_scope_2(True),
    },
    "llama_scope": {
        "jumprelu": llama_scope,
        "jumprelu_by_norm": lambda: llama_scope(by_norm=True),
        "centred": lambda: llama_scope(centred=True),
        "topk_by_norm": lambda: llama_scope("topk", by_norm=True),
    },
    "llamascopium": {
        "relu": lambda: llamascopium("relu"),
        "jumprelu": lambda: llamascopium("jumprelu"),
        "jumprelu_plain": lambda: llamascopium("jumprelu", by_norm=False),
        "topk": lambda: llamascopium("topk"),
        "topk_folded": lambda: llamascopium("topk", folded=True),
        "crosscoder_relu": lambda: llamascopium("relu", heads=2),
        "crosscoder_jumprelu": lambda: llamascopium("jumprelu", heads=2),
        "crosscoder_topk": lambda: llamascopium("topk", heads=2),
    },
    "openai": {"relu": openai},
}
