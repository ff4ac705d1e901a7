"""Llamascopium (lm-saes): `config.json` and `sae_weights.safetensors`, SAEs and crosscoders.

A latent passes when its value times its decoder norm exceeds the threshold (or is among the k
largest); the value itself is kept. A crosscoder does that head by head: a decoupled code norm. Its
bias [heads, latents] counts as the sum. Dataset-wise activations are scaled to norm sqrt(d_model).
Format: OpenMOSS/Language-Model-SAEs, models/sae.py, crosscoder.py and sparse_dictionary.py.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.dictionaries.formats import _convert as convert
from jaxdiff.dictionaries.formats import _files as files
from jaxdiff.dictionaries.formats._format import Format, Imported, folder_of, unsupported
from jaxdiff.dictionaries.normalization import Normalization
from jaxdiff.progress import log

SETTINGS, WEIGHTS = "config.json", "sae_weights.safetensors"
_SCALES = "dataset_average_activation_norm."
_THRESHOLD = "activation_function.log_jumprelu_threshold"
_SHAPES = {
    "sae": {"W_E": "D L", "b_E": "L", "W_D": "L D", "b_D": "D"},
    "crosscoder": {"W_E": "M D L", "b_E": "M L", "W_D": "M L D", "b_D": "M D"},
}


def _matches(path: Path) -> bool:
    folder = folder_of(path)
    return (folder / SETTINGS).is_file() and (folder / WEIGHTS).is_file()


def _read(path: Path) -> Imported:
    folder = folder_of(path)
    where = folder / SETTINGS
    settings, found = files.read_settings(where), files.read_tensors(folder / WEIGHTS)
    kind = files.setting(settings, "sae_type", where)
    act = settings.get("act_fn", "relu").lower()
    if kind not in _SHAPES or settings.get("use_glu_encoder"):
        raise unsupported(f"the type {kind!r}" if kind not in _SHAPES else "a GLU encoder", folder)
    if act not in ("relu", "jumprelu", "topk", "batchtopk"):
        raise unsupported(f"the activation {act}", folder)
    if (kind, act) == ("crosscoder", "batchtopk"):
        raise unsupported("batchtopk over rows and heads together", folder)
    sites = settings.get("hook_points") or [settings.get("hook_point_in")]
    if settings.get("hook_point_out") not in (None, sites[0]):
        raise unsupported("a transcoder, which reads one site and writes another", folder)
    shapes = _SHAPES[kind] | ({_THRESHOLD: "L"} if act == "jumprelu" else {})
    optional = {"b_D": shapes.pop("b_D")} if not settings.get("use_decoder_bias", True) else {}
    optional |= {name: "" for name in found if name.startswith(_SCALES)}
    t = files.take(found, shapes, folder / WEIGHTS, optional=optional)
    by_norm = settings.get("sparsity_include_decoder_norm", True)
    # The setting is there for all activations.
    k = float(settings.get("top_k", 0)) if "topk" in act else 0.0
    d = _dictionary(t, act, k, bool(by_norm), folder)
    return convert.imported(d, _scale(settings, t, sites, folder))


def _dictionary(t: dict[str, Any], act: str, k: float, by_norm: bool, folder: Path) -> Dictionary:
    crosscoder = t["W_E"].ndim == 3
    norms = np.linalg.norm(t["W_D"].astype(np.float64), axis=-1).T  # [L], or [L, M] of heads.
    rule: dict[str, Any] = {"activation": {"batchtopk": "batch_topk"}.get(act, act), "k": k}
    if act == "jumprelu":
        threshold = np.exp(t[_THRESHOLD].astype(np.float64))
        threshold = threshold[:, None] if crosscoder else threshold
        safe = np.where(norms > 0, norms, 1.0) if by_norm else 1.0
        rule["threshold"] = np.where((norms > 0) | (not by_norm), threshold / safe, np.inf)
    if act == "batchtopk":
        log(f"{folder} has no threshold: all positive latents pass until one is calibrated")
    if not crosscoder:
        b_D = t.get("b_D", np.zeros(t["W_E"].shape[0]))
        code_norm = "sae" if by_norm else "none"
        return convert.dictionary(t["W_E"], t["b_E"], t["W_D"], b_D, code_norm=code_norm, **rule)
    W_dec, b_enc = t["W_D"].transpose(1, 0, 2), t["b_E"].astype(np.float64).sum(axis=0)
    return convert.dictionary(t["W_E"], b_enc, W_dec, t["b_D"], code_norm="decoupled", **rule)


def _scale(settings: dict[str, Any], t: dict[str, Any], sites: list[Any], folder: Path) -> Any:
    kind = settings.get("norm_activation", "dataset-wise")
    if kind == "inference":
        return 1.0
    if kind != "dataset-wise":
        raise unsupported(f"activations normalised {kind}", folder)
    norms = np.array([t.get(f"{_SCALES}{site}", np.nan) for site in sites])
    if not (norms > 0).all():
        raise unsupported("dataset-wise activations without their average norms", folder)
    return np.sqrt(t["W_E"].shape[-2]) / norms


def _write(d: Dictionary, normalization: Normalization, folder: Path) -> None:
    scale = np.asarray(normalization.scale)
    if np.any(normalization.mean):
        d, scale = convert.raw(d, normalization), np.ones_like(scale)
    models, width, latents = d.W_enc.shape
    if models == 1:
        tensors, settings = _sae(convert.sae(d, folder, "Llamascopium"), folder)
        sites = ["model.0"]
        settings |= {"sae_type": "sae", "hook_point_in": sites[0], "hook_point_out": sites[0]}
    elif d.code_norm == "decoupled" and d.activation in ("relu", "topk"):
        zeros = np.zeros((models - 1, latents))
        tensors = {
            "W_E": d.W_enc,
            "b_E": np.concatenate([np.asarray(d.b_enc)[None], zeros]),
            "W_D": np.asarray(d.W_dec).transpose(1, 0, 2),
            "b_D": d.b_dec,
        }
        sites = [f"model.{m}" for m in range(models)]
        settings = {"sae_type": "crosscoder", "hook_points": sites, "act_fn": d.activation}
        settings["sparsity_include_decoder_norm"] = True
    else:
        raise unsupported(f"a {d.code_norm} {d.activation} crosscoder in Llamascopium", folder)
    settings |= {
        "d_model": width,
        "expansion_factor": latents / width,
        "use_decoder_bias": True,
        "norm_activation": "dataset-wise",
        "top_k": round(d.k),
    }
    tensors |= {f"{_SCALES}{s}": width**0.5 / a for s, a in zip(sites, scale, strict=True)}
    arrays = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    files.write_tensors(folder / WEIGHTS, arrays)
    files.write_settings(folder / SETTINGS, settings)


def _sae(d: Dictionary, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    names = {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
    tensors = {names[name]: array for name, array in convert.arrays(d).items()}
    if d.activation in ("relu", "topk"):
        by_norm = d.activation == "topk" and d.code_norm != "none"
        return tensors, {"act_fn": d.activation, "sparsity_include_decoder_norm": by_norm}
    threshold = convert.thresholds(d, folder, "Llamascopium")
    # Values are positive anyway, so that a negative threshold is no other than 0.
    with np.errstate(divide="ignore"):
        tensors[_THRESHOLD] = np.log(np.maximum(threshold, 0.0))
    return tensors, {"act_fn": "jumprelu", "sparsity_include_decoder_norm": False}


FORMAT = Format("Llamascopium: config.json, sae_weights.safetensors", _matches, _read, _write)
