"""crosscode: `model_cfg.yaml` and `model.pt`, over models and hookpoints.

Both axes become the model axis, hookpoints running faster. TopK ranks pre-activations before any
relu; negative values among the k largest are 0 here. BatchTopK has no threshold for inference.
Format: oli-clive-griffin/crosscode, models/base_crosscoder.py and acausal_crosscoder.py.
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

SETTINGS, WEIGHTS = "model_cfg.yaml", "model.pt"
_JUMPRELU, _THRESHOLD = "AnthropicSTEJumpReLUActivation", "_activation_fn.log_threshold_L"
_SHAPES = {"_W_enc_XiDiL": "X P D L", "_W_dec_LXoDo": "L X P D"}
_BIASES = {"b_enc_L": "L", "_b_dec_XoDo": "X P D"}
_FOLDED = ("folded_scaling_factors_in_Xi", "folded_scaling_factors_out_Xo", "is_folded")


def _matches(path: Path) -> bool:
    return (folder_of(path) / SETTINGS).is_file()


def _read(path: Path) -> Imported:
    folder = folder_of(path)
    settings, where = files.read_settings(folder / SETTINGS), folder / WEIGHTS
    activation = files.setting(settings, "activation_fn", folder / SETTINGS)
    # The module's attribute had both names.
    found = {
        _THRESHOLD if name == _THRESHOLD[1:] else name: value
        for name, value in files.read_tensors(where).items()
    }
    kind = activation["classname"]
    shapes = _SHAPES | ({_THRESHOLD: "L"} if kind == _JUMPRELU else {})
    t = files.take(found, shapes, where, optional=_BIASES, ignored=_FOLDED)
    W_enc, W_dec = t["_W_enc_XiDiL"], t["_W_dec_LXoDo"]
    width, latents = W_enc.shape[-2:]
    # Biases are optional in the constructor.
    b_enc = t.get("b_enc_L", np.zeros(latents))
    b_dec = t.get("_b_dec_XoDo", np.zeros(W_enc.shape[:-1]))
    d = convert.dictionary(
        W_enc.reshape(-1, width, latents),
        b_enc,
        W_dec.reshape(latents, -1, width),
        b_dec.reshape(-1, width),
        **_rule(kind, activation.get("cfg") or {}, t, folder / SETTINGS),
    )
    return convert.imported(d)


def _rule(kind: str, cfg: dict[str, Any], t: dict[str, Any], where: Path) -> dict[str, Any]:
    if kind == "ReLUActivation":
        return {"activation": "relu", "code_norm": "crosscoder"}
    if kind == "TopkActivation":
        return {"activation": "topk", "k": files.setting(cfg, "k", where)}
    if kind == _JUMPRELU:
        return {"activation": "jumprelu", "threshold": np.exp(t[_THRESHOLD].astype(np.float64))}
    if kind == "BatchTopkActivation":
        log(f"{where} has no threshold: all positive latents pass until one is calibrated")
        return {"activation": "batch_topk", "k": cfg.get("k") or cfg.get("k_per_example")}
    raise unsupported(f"the activation {kind}", where)


def _write(d: Dictionary, normalization: Normalization, folder: Path) -> None:
    d = convert.raw(d, normalization)
    if d.code_norm == "decoupled" or (d.activation == "topk" and d.code_norm != "none"):
        raise unsupported(f"a {d.code_norm} {d.activation} dictionary in this format", folder)
    models, width, latents = d.W_enc.shape
    names = ("_W_enc_XiDiL", "b_enc_L", "_W_dec_LXoDo", "_b_dec_XoDo")
    shapes = ((models, 1, width, latents), (latents,), (latents, models, 1, width))
    leaves = (d.W_enc, d.b_enc, d.W_dec, d.b_dec)
    tensors: dict[str, Any] = {
        name: np.asarray(leaf, np.float32).reshape(shape)
        for name, leaf, shape in zip(names, leaves, (*shapes, (models, 1, width)), strict=True)
    }
    tensors |= {name: np.zeros((models, 1), np.float32) for name in _FOLDED[:2]}
    tensors["is_folded"] = np.asarray(False)
    if d.activation == "relu":
        activation: dict[str, Any] = {"classname": "ReLUActivation", "cfg": {}}
    elif d.activation == "topk":
        activation = {"classname": "TopkActivation", "cfg": {"k": round(d.k)}}
    else:
        activation = {"classname": _JUMPRELU, "cfg": {"size": latents, "bandwidth": 2.0}}
        threshold = convert.thresholds(d, folder, "crosscode")
        # Values are positive anyway, so that a negative threshold is no other than 0.
        with np.errstate(divide="ignore"):
            tensors[_THRESHOLD] = np.log(np.maximum(threshold, 0.0)).astype(np.float32)
    settings = {
        "n_models": models,
        "n_hookpoints": 1,
        "d_model": width,
        "n_latents": latents,
        "activation_fn": activation,
        "use_encoder_bias": True,
        "use_decoder_bias": True,
        "dtype": "float32",
    }
    files.write_tensors(folder / WEIGHTS, tensors)
    files.write_settings(folder / SETTINGS, settings)


FORMAT = Format("crosscode: model_cfg.yaml, model.pt", _matches, _read, _write)
