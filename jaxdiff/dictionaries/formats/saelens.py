"""SAELens: `cfg.json` and `sae_weights.safetensors`.

A standard SAE encodes relu((x - b_dec) W_enc + b_enc), where b_dec is subtracted only with
`apply_b_dec_to_input`. BatchTopK is published as jumprelu with the same threshold for all latents;
checkpoints of its training have `topk_threshold`. With `rescale_acts_by_decoder_norm` latents are
ranked, and returned, times their decoder norm. Transcoders subtract nothing; a skip adds
x W_skip^T.
Format: SAELens 6, sae_lens/saes and loading/pretrained_sae_loaders.py.
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

SETTINGS, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
_SHAPES = {"W_enc": "D L", "W_dec": "L D", "b_dec": "D"}
_BIASES = {
    "standard": {"b_enc": "L"},
    "topk": {"b_enc": "L"},
    "batchtopk": {"b_enc": "L", "topk_threshold": ""},
    "matryoshka_batchtopk": {"b_enc": "L", "topk_threshold": ""},
    "jumprelu": {"b_enc": "L", "threshold": "L"},
    "gated": {"b_gate": "L", "r_mag": "L", "b_mag": "L"},
}
_TRANSCODERS = {
    "transcoder": ("standard", {}),
    "skip_transcoder": ("standard", {"W_skip": "D D"}),
    "jumprelu_transcoder": ("jumprelu", {}),
    "jumprelu_skip_transcoder": ("jumprelu", {"W_skip": "D D"}),
}


def _matches(path: Path) -> bool:
    folder = folder_of(path)
    return (folder / SETTINGS).is_file() and (folder / WEIGHTS).is_file()


def _read(path: Path) -> Imported:
    folder = folder_of(path)
    settings = _modern(files.read_settings(folder / SETTINGS))
    name = settings["architecture"]
    kind, extra = _TRANSCODERS.get(name, (name, {}))
    if kind not in _BIASES:
        known = ", ".join((*_BIASES, *_TRANSCODERS))
        raise unsupported(f"the architecture {kind!r} (only {known})", folder)
    found = files.read_tensors(folder / WEIGHTS)
    # Older versions wrote a factor of each latent; theirs refuses one that is not 1.
    if not np.allclose(files.as_float(found.pop("scaling_factor", 1.0)), 1.0):
        raise unsupported("latents scaled after training (scaling_factor)", folder)
    if "log_threshold" in found:
        found["threshold"] = np.exp(files.as_float(found.pop("log_threshold")))
    tensors = files.take(found, _SHAPES | _BIASES[kind] | extra, folder / WEIGHTS)
    W_enc, W_dec, b_dec = (tensors[name] for name in _SHAPES)
    if kind == "gated":
        factor, threshold = convert.gated(*(tensors[name] for name in _BIASES[kind]))
        W_enc, b_enc = W_enc * factor, tensors["b_mag"]
        rule = {"activation": "jumprelu", "threshold": threshold}
    else:
        b_enc, rule = tensors["b_enc"], _rule(kind, settings, tensors, folder)
    if "topk" in kind and settings.get("rescale_acts_by_decoder_norm"):
        norms = np.linalg.norm(W_dec.astype(np.float64), axis=-1)
        W_enc, b_enc = W_enc * norms, b_enc * norms
        W_dec = W_dec / np.where(norms > 0, norms, 1.0)[:, None]
    transcoder, skip = name in _TRANSCODERS, tensors.get("W_skip")
    rule |= {"centred": settings["apply_b_dec_to_input"] and not transcoder}
    rule |= {"transcoder": transcoder, "W_skip": None if skip is None else skip.T}
    d = convert.dictionary(W_enc, b_enc, W_dec, b_dec, **rule)
    scale = _scale(settings["normalize_activations"], folder)
    return convert.imported(d, np.array([scale, 1.0]) if transcoder else scale)


def _rule(kind: str, settings: dict[str, Any], tensors: Any, folder: Path) -> dict[str, Any]:
    if kind == "jumprelu":
        return {"activation": "jumprelu", "threshold": tensors["threshold"]}
    if kind == "standard":
        return {"activation": "relu"}
    k = files.setting(settings, "k", folder / SETTINGS)
    if kind == "topk":
        return {"activation": "topk", "k": k}
    return {"activation": "batch_topk", "k": k, "threshold": tensors["topk_threshold"]}


def _modern(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings under the names and with the defaults of version 6."""
    chosen = settings.get("activation_fn", settings.get("activation_fn_str", "relu"))
    normalize = settings.get("normalize_activations") or "none"
    if chosen == "topk":
        k = (settings.get("activation_fn_kwargs") or {}).get("k")
        settings = {"k": k, **settings, "architecture": "topk"}
    return {
        "architecture": "standard",
        "apply_b_dec_to_input": True,
        **settings,
        "normalize_activations": "expected_average_only_in" if normalize is True else normalize,
    }


def _scale(normalize: str, folder: Path) -> float:
    """Returns the factor of activations; per-token normalisations have none."""
    if normalize == "none":
        return 1.0
    if normalize != "expected_average_only_in":
        raise unsupported(f"activations normalised by {normalize}", folder)
    if (folder / SCALER).is_file():
        factor = files.read_settings(folder / SCALER).get("scaling_factor")
        return 1.0 if factor is None else float(factor)
    log(f"{folder} was trained on scaled activations and does not say by how much: not scaled")
    return 1.0


def _write(d: Dictionary, normalization: Normalization, folder: Path) -> None:
    d = convert.sae(convert.raw(d, normalization), folder, "SAELens")
    if d.activation == "topk":
        d, kind = convert.unit_decoders(d), "topk"
        extra = {"k": round(d.k), "rescale_acts_by_decoder_norm": False}
    else:
        kind, extra = "standard" if d.activation == "relu" else "jumprelu", {}
    transcoder, base = d.reads != d.writes, kind
    if transcoder or d.W_skip is not None:
        wanted = base, {"W_skip": "D D"} if d.W_skip is not None else {}
        named = (name for name, made_of in _TRANSCODERS.items() if made_of == wanted)
        kind = next(named, None) if transcoder else None
        if kind is None:
            raise unsupported(f"such a {d.activation} dictionary in SAELens", folder)
        extra |= {"d_out": d.b_dec.shape[1]}
    tensors = {name: a.astype(np.float32) for name, a in convert.arrays(d).items()}
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T
    if base == "jumprelu":
        tensors["threshold"] = convert.thresholds(d, folder, "SAELens").astype(np.float32)
    width, latents = tensors["W_enc"].shape
    settings = {
        "architecture": kind,
        "d_in": width,
        "d_sae": latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", "sae_lens_training_version": None},
        **extra,
    }
    files.write_tensors(folder / WEIGHTS, tensors)
    files.write_settings(folder / SETTINGS, settings)


FORMAT = Format(
    "SAELens: cfg.json, sae_weights.safetensors",
    _matches,
    _read,
    _write,
    extras=frozenset(("transcoder", "skip")),
)
