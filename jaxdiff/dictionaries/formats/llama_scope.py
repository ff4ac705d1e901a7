"""Llama Scope as published: `hyperparams.json` and `checkpoints/final.safetensors`.

Activations are scaled to a mean norm of sqrt(d_model). `jump_relu_threshold` is one number for all
latents, and it is meant for activations that are not scaled: SAELens multiplies it by the factor
(its pull request 483, by an author of Llama Scope). With `sparsity_include_decoder_norm` a value
times its decoder norm is compared, and the value itself is kept.
Format: arXiv:2410.20526; OpenMOSS/Language-Model-SAEs, sae.py.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.dictionaries.formats import _convert as convert
from jaxdiff.dictionaries.formats import _files as files
from jaxdiff.dictionaries.formats._format import Format, Imported, folder_of, unsupported
from jaxdiff.dictionaries.normalization import Normalization

SETTINGS, WEIGHTS = "hyperparams.json", Path("checkpoints", "final.safetensors")
_SHAPES = {"encoder.weight": "L D", "encoder.bias": "L", "decoder.weight": "D L"}


def _matches(path: Path) -> bool:
    return (folder_of(path) / SETTINGS).is_file()


def _read(path: Path) -> Imported:
    folder = folder_of(path)
    where = folder / SETTINGS
    settings = files.read_settings(where)
    scale = _scale(settings, where)
    t = files.take(
        files.read_tensors(folder / WEIGHTS),
        _SHAPES,
        folder / WEIGHTS,
        optional={"decoder.bias": "D"},
    )
    by_norm = bool(settings.get("sparsity_include_decoder_norm", False))
    b_dec = t.get("decoder.bias", np.zeros(t["decoder.weight"].shape[0]))
    d = convert.dictionary(
        *(t["encoder.weight"].T, t["encoder.bias"], t["decoder.weight"].T, b_dec),
        centred=bool(settings.get("apply_decoder_bias_to_pre_encoder", False)),
        code_norm="sae" if by_norm else "none",
        **_rule(settings, t["decoder.weight"], scale, by_norm, where),
    )
    return convert.imported(d, scale)


def _scale(settings: dict[str, Any], where: Path) -> float:
    if settings.get("hook_point_out") not in (None, settings.get("hook_point_in")):
        raise unsupported("a transcoder, which reads one site and writes another", where)
    if settings.get("use_glu_encoder"):
        raise unsupported("a gated linear encoder (use_glu_encoder)", where)
    kind = settings.get("norm_activation", "dataset-wise")
    if kind == "inference":
        return 1.0
    if kind != "dataset-wise":
        raise unsupported(f"activations normalised {kind}", where)
    norms = files.setting(settings, "dataset_average_activation_norm", where)
    return files.setting(settings, "d_model", where) ** 0.5 / norms["in"]


def _rule(settings: dict[str, Any], W_dec: Any, scale: float, by_norm: bool, where: Path) -> Any:
    kind = settings.get("act_fn", "relu").lower()
    if kind == "relu":
        return {"activation": "relu"}
    if kind == "topk":
        return {"activation": "topk", "k": files.setting(settings, "top_k", where)}
    if kind != "jumprelu":
        raise unsupported(f"the activation {kind}", where)
    threshold = files.setting(settings, "jump_relu_threshold", where) * scale
    norms = np.linalg.norm(W_dec.astype(np.float64), axis=0)
    if not by_norm:
        norms = np.ones_like(norms)
    safe = np.where(norms > 0, norms, 1.0)
    rule = np.where(norms > 0, threshold / safe, np.inf if threshold >= 0 else 0.0)
    return {"activation": "jumprelu", "threshold": rule, "k": settings.get("top_k", 0)}


def _write(d: Dictionary, normalization: Normalization, folder: Path) -> None:
    d = convert.sae(convert.raw(d, normalization), folder, "Llama Scope")
    a = convert.arrays(d)
    width, latents = a["W_enc"].shape
    settings: dict[str, Any] = {
        "d_model": width,
        "d_sae": latents,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": d.code_norm != "none",
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": width**0.5, "out": width**0.5},
        "top_k": round(d.k),
        "act_fn": d.activation,
    }
    if d.activation in ("batch_topk", "jumprelu"):
        if d.activation == "jumprelu":
            settings["sparsity_include_decoder_norm"] = False
        values = np.unique(np.asarray(d.threshold, np.float64))
        if values.size != 1:
            raise unsupported("a threshold of each latent in Llama Scope, which has one", folder)
        settings |= {"act_fn": "jumprelu", "jump_relu_threshold": float(values[0])}
    tensors = {
        "encoder.weight": a["W_enc"].T,
        "encoder.bias": a["b_enc"],
        "decoder.weight": a["W_dec"].T,
        "decoder.bias": a["b_dec"],
    }
    files.write_tensors(folder / WEIGHTS, {n: v.astype(np.float32) for n, v in tensors.items()})
    files.write_settings(folder / SETTINGS, settings)


FORMAT = Format(
    "Llama Scope: hyperparams.json, checkpoints/final.safetensors", _matches, _read, _write
)
