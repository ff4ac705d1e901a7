"""dictionary_learning: `ae.pt` beside `config.json`, whose `trainer.dict_class` says which class.

All but JumpReluAutoEncoder and AutoEncoderNew encode x minus the decoder bias. A threshold of -1
was never set, and lets every positive latent pass. AutoEncoderTopK has one too and does not use it.
Their loader gives an AutoEncoder decoders of norm 1 and scales its latents; so does this one.
Format: saprmarks/dictionary_learning 0.1.0, dictionary.py and trainers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.dictionaries.formats import _convert as convert
from jaxdiff.dictionaries.formats import _files as files
from jaxdiff.dictionaries.formats._format import Format, Imported, folder_of, unsupported
from jaxdiff.dictionaries.normalization import Normalization

SETTINGS, WEIGHTS = "config.json", "ae.pt"
_LINEAR = {"encoder.weight": "L D", "decoder.weight": "D L"}
_PLAIN = {"W_enc": "D L", "b_enc": "L", "W_dec": "L D", "b_dec": "D"}
_BATCH = {"k": "", "threshold": ""}


def _matches(path: Path) -> bool:
    found = _weights(path)
    return found.match("ae*.pt") and found.is_file() and _settings(path).is_file()


def _weights(path: Path) -> Path:
    return path if path.is_file() and path.suffix == ".pt" else folder_of(path) / WEIGHTS


def _settings(path: Path) -> Path:
    """Returns the settings' file; that of checkpoints/ae_STEP.pt lies one folder up."""
    folder = _weights(path).parent
    return folder.parent / SETTINGS if folder.name == "checkpoints" else folder / SETTINGS


def _auto_encoder(t: dict[str, Any]) -> Dictionary:
    rule = {"activation": "relu", "code_norm": "sae"}
    return convert.unit_decoders(_centred(t, t["encoder.bias"], t["bias"], **rule))


def _auto_encoder_new(t: dict[str, Any]) -> Dictionary:
    weights = t["encoder.weight"].T, t["encoder.bias"], t["decoder.weight"].T, t["decoder.bias"]
    return convert.dictionary(*weights, activation="relu")


def _top_k(t: dict[str, Any]) -> Dictionary:
    return _centred(t, t["encoder.bias"], t["b_dec"], activation="topk", k=t["k"])


def _batch_top_k(t: dict[str, Any]) -> Dictionary:
    rule = {"activation": "batch_topk", "k": t["k"], "threshold": t["threshold"]}
    return _centred(t, t["encoder.bias"], t["b_dec"], **rule)


def _matryoshka(t: dict[str, Any]) -> Dictionary:
    weights = (t[name] for name in _PLAIN)
    rule = {"activation": "batch_topk", "k": t["k"], "threshold": t["threshold"]}
    return convert.dictionary(*weights, centred=True, **rule)


def _jump_relu(t: dict[str, Any]) -> Dictionary:
    weights = (t[name] for name in _PLAIN)
    return convert.dictionary(*weights, activation="jumprelu", threshold=t["threshold"])


def _gated(t: dict[str, Any]) -> Dictionary:
    factor, threshold = convert.gated(t["gate_bias"], t["r_mag"], t["mag_bias"])
    t = t | {"encoder.weight": t["encoder.weight"] * factor[:, None]}
    rule = {"activation": "jumprelu", "threshold": threshold}
    return _centred(t, t["mag_bias"], t["decoder_bias"], **rule)


def _centred(t: dict[str, Any], b_enc: np.ndarray, b_dec: np.ndarray, **rule: Any) -> Dictionary:
    weights = t["encoder.weight"].T, b_enc, t["decoder.weight"].T, b_dec
    return convert.dictionary(*weights, centred=True, **rule)


_GATED = {"decoder_bias": "D", "r_mag": "L", "gate_bias": "L", "mag_bias": "L"}
# Class -> tensors, tensors that older files lack, and what makes a dictionary of them.
_CLASSES: dict[str, tuple[dict[str, str], dict[str, str], Callable[[Any], Dictionary]]] = {
    "AutoEncoder": (_LINEAR | {"encoder.bias": "L", "bias": "D"}, {}, _auto_encoder),
    "AutoEncoderNew": (
        _LINEAR | {"encoder.bias": "L", "decoder.bias": "D"},
        {},
        _auto_encoder_new,
    ),
    "AutoEncoderTopK": (
        _LINEAR | {"encoder.bias": "L", "b_dec": "D", "k": ""},
        {"threshold": ""},
        _top_k,
    ),
    "BatchTopKSAE": (_LINEAR | {"encoder.bias": "L", "b_dec": "D"} | _BATCH, {}, _batch_top_k),
    "MatryoshkaBatchTopKSAE": (_PLAIN | _BATCH | {"group_sizes": "G"}, {}, _matryoshka),
    "JumpReluAutoEncoder": (_PLAIN | {"threshold": "L"}, {}, _jump_relu),
    "GatedAutoEncoder": (_LINEAR | _GATED, {}, _gated),
}


def _read(path: Path) -> Imported:
    where = _settings(path)
    trainer = files.setting(files.read_settings(where), "trainer", where)
    name = files.setting(trainer, "dict_class", where)
    if name not in _CLASSES:
        raise unsupported(f"the class {name} (only {', '.join(_CLASSES)})", where)
    shapes, optional, make = _CLASSES[name]
    found = files.read_tensors(_weights(path))
    return convert.imported(make(files.take(found, shapes, _weights(path), optional=optional)))


def _write(d: Dictionary, normalization: Normalization, folder: Path) -> None:
    d = convert.sae(convert.raw(d, normalization), folder, "dictionary_learning")
    if d.activation in ("topk", "batch_topk"):
        d = convert.unit_decoders(d)
    a, k = convert.arrays(d), np.asarray(round(d.k), np.int32)
    linear = {"encoder.weight": a["W_enc"].T, "decoder.weight": a["W_dec"].T}
    linear["encoder.bias"] = convert.uncentred_bias(d)
    if d.activation == "relu":
        # Of their relu classes, the one whose loader leaves latents as they are.
        linear["encoder.bias"] = a["b_enc"]
        name, tensors = "AutoEncoderNew", linear | {"decoder.bias": a["b_dec"]}
    elif d.activation == "jumprelu":
        threshold = convert.thresholds(d, folder, "dictionary_learning")
        name, tensors = "JumpReluAutoEncoder", a | {"threshold": threshold}
    else:
        name = "AutoEncoderTopK" if d.activation == "topk" else "BatchTopKSAE"
        threshold = d.threshold if d.activation == "batch_topk" else -1.0
        tensors = linear | {"b_dec": a["b_dec"], "threshold": np.asarray(threshold)}
    floats = {name: value.astype(np.float32) for name, value in tensors.items()}
    floats |= {"k": k} if "topk" in d.activation else {}
    width, latents = a["W_enc"].shape
    trainer = {"dict_class": name, "activation_dim": width, "dict_size": latents, "k": int(k)}
    files.write_tensors(folder / WEIGHTS, floats)
    files.write_settings(folder / SETTINGS, {"trainer": trainer, "buffer": {}})


FORMAT = Format("dictionary_learning: config.json, ae.pt", _matches, _read, _write)
