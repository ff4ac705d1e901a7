"""The crosscoders of arXiv:2504.02922, in the fork of dictionary_learning that trained them.

`config.json` with `model.safetensors` (Hugging Face) or `model_final.pt` (local). A latent of
BatchTopK is active where relu(pre) times its code norm exceeds the threshold; its value is not
scaled. The decoder bias is not subtracted before encoding, except in the fork's BatchTopK SAE.
Activations become (x - activation_mean) * activation_global_scale first, unless the mean is NaN.
Format: science-of-finetuning/crosscoder_learning, dictionary.py.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.dictionaries.dictionary import CodeNorm, Dictionary
from jaxdiff.dictionaries.formats import _convert as convert
from jaxdiff.dictionaries.formats import _files as files
from jaxdiff.dictionaries.formats._format import Format, Imported, folder_of, unsupported
from jaxdiff.dictionaries.normalization import Normalization

SETTINGS, WEIGHTS, LOCAL = "config.json", "model.safetensors", "model_final.pt"
_CODE_NORMS: dict[int, CodeNorm] = {
    1: "crosscoder",
    2: "sae",
    3: "mixed",
    4: "none",
    5: "decoupled",
}
_CROSSCODER = {
    "encoder.weight": "M D L",
    "encoder.bias": "L",
    "decoder.weight": "M L D",
    "decoder.bias": "M D",
}
_SAE = {"encoder.weight": "L D", "encoder.bias": "L", "decoder.weight": "D L", "b_dec": "D"}


def _matches(path: Path) -> bool:
    folder = folder_of(path)
    hub = (folder / SETTINGS).is_file() and (folder / WEIGHTS).is_file()
    return hub or _weights(path).name == LOCAL or path.match("checkpoint_*.pt")


def _weights(path: Path) -> Path:
    if path.is_file() and path.suffix != ".json":
        return path
    folder = folder_of(path)
    return folder / (LOCAL if (folder / LOCAL).is_file() else WEIGHTS)


def _read(path: Path) -> Imported:
    where = _weights(path)
    # Written from a compiled module, every name has a prefix.
    found = {n.replace("_orig_mod.", ""): v for n, v in files.read_tensors(where).items()}
    settings = _settings(where.parent)
    if np.ndim(found.get("encoder.weight", 0.0)) == 2:
        return _read_sae(found, where)
    rule = {"k": "", "threshold": ""} if "k" in found else {}
    code_norm = _code_norm(found, settings, where)
    if rule and code_norm == "decoupled":
        rule["threshold"] = "M"
    tensors = files.take(
        found, _CROSSCODER | rule, where, optional={"code_normalization_id": "", **_norms("M ")}
    )
    d = convert.dictionary(
        tensors["encoder.weight"],
        tensors["encoder.bias"],
        tensors["decoder.weight"].transpose(1, 0, 2),
        tensors["decoder.bias"],
        activation="batch_topk" if rule else "relu",
        k=tensors.get("k", 0.0),
        threshold=tensors.get("threshold", 0.0),
        code_norm=code_norm,
    )
    found_norm = _normalization(tensors, d, where)
    if rule and code_norm == "decoupled" and found_norm is not None:
        raise unsupported("a decoupled crosscoder that normalises (the fork does it twice)", where)
    return convert.imported(d) if found_norm is None else Imported(d, found_norm)


def _read_sae(found: dict[str, Any], where: Path) -> Imported:
    shapes = _SAE | {"k": "", "threshold": ""}
    t = files.take(found, shapes, where, optional=_norms(""))
    d = convert.dictionary(
        *(t["encoder.weight"].T, t["encoder.bias"], t["decoder.weight"].T, t["b_dec"]),
        activation="batch_topk",
        k=t["k"],
        threshold=t["threshold"],
        centred=True,
    )
    found_norm = _normalization(t, d, where)
    return convert.imported(d) if found_norm is None else Imported(d, found_norm)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    settings = files.read_settings(path) if path.is_file() else {}
    settings = settings.get("trainer", settings)
    if settings.get("encoder_layers") is not None:
        raise unsupported("an encoder that reads some of the models only (encoder_layers)", path)
    weights = [settings.get(f"code_normalization_alpha_{name}") for name in ("sae", "cc")]
    if any(w not in (None, own) for w, own in zip(weights, (1.0, 0.1), strict=True)):
        raise unsupported(f"a mixed code norm with weights {weights}", path)
    return settings


def _code_norm(found: dict[str, Any], settings: dict[str, Any], where: Path) -> CodeNorm:
    """Returns the code norm; files from before there was a choice have the crosscoder's."""
    if "code_normalization_id" not in found:
        name = str(settings.get("code_normalization") or "crosscoder").lower()
        number = {v: k for k, v in _CODE_NORMS.items()}.get(name)
    else:
        ids = np.ravel(found["code_normalization_id"])
        name = number = int(ids[0]) if ids.size == 1 else None
    if number not in _CODE_NORMS:
        raise unsupported(f"the code normalisation {name}", where)
    return _CODE_NORMS[number]


def _norms(models: str) -> dict[str, str]:
    axes = f"{models}D"
    return {
        "target_rms": "",
        "activation_mean": axes,
        "activation_std": axes,
        "activation_global_scale": models.strip(),
    }


def _normalization(t: dict[str, Any], d: Dictionary, where: Path) -> Normalization | None:
    mean = t.get("activation_mean")
    if mean is None or np.isnan(mean).any() or np.isnan(t.get("activation_std", 0.0)).any():
        return None
    if "activation_global_scale" not in t:
        raise unsupported("a mean without activation_global_scale", where)
    shape = d.b_dec.shape
    scale = np.broadcast_to(t["activation_global_scale"], shape[:1])
    return Normalization(mean.reshape(shape), np.array(scale))


def _write(d: Dictionary, normalization: Normalization, folder: Path) -> None:
    if d.activation not in ("relu", "batch_topk"):
        raise unsupported(f"a {d.activation} dictionary in this format", folder)
    models, width = d.b_dec.shape
    mean, scale = np.asarray(normalization.mean), np.asarray(normalization.scale)
    plain = not mean.any() and (scale == 1).all()
    if not plain and d.code_norm == "decoupled":
        raise unsupported("a decoupled crosscoder that normalises (the fork does it twice)", folder)
    # Their scale is target_rms / sqrt(sum of variances); only the scale itself is used.
    std = np.broadcast_to(1 / (scale * np.sqrt(width))[:, None], mean.shape)
    number = next(k for k, name in _CODE_NORMS.items() if name == d.code_norm)
    tensors: dict[str, Any] = {
        "encoder.weight": d.W_enc,
        "encoder.bias": d.b_enc,
        "decoder.weight": np.asarray(d.W_dec).transpose(1, 0, 2),
        "decoder.bias": d.b_dec,
        "target_rms": 1.0,
        "activation_mean": np.full_like(mean, np.nan) if plain else mean,
        "activation_std": np.full_like(mean, np.nan) if plain else std,
        "activation_global_scale": scale,
    }
    settings: dict[str, Any] = {
        "dict_class": "CrossCoder",
        "activation_dim": width,
        "dict_size": d.b_enc.shape[0],
        "num_layers": models,
        "code_normalization": d.code_norm.upper(),
    }
    if d.activation == "batch_topk":
        tensors["threshold"] = d.threshold
        settings |= {"dict_class": "BatchTopKCrossCoder", "k": round(d.k)}
    arrays: dict[str, Any] = {n: np.asarray(v, np.float32) for n, v in tensors.items()}
    arrays["code_normalization_id"] = np.asarray(number, np.int64)
    if d.activation == "batch_topk":
        arrays["k"] = np.asarray(round(d.k), np.int32)
    files.write_tensors(folder / WEIGHTS, arrays)
    files.write_settings(folder / SETTINGS, settings)


FORMAT = Format(
    "crosscoders of arXiv:2504.02922: config.json, model.safetensors (or model_final.pt)",
    _matches,
    _read,
    _write,
)
