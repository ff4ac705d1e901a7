"""Gemma Scope 2: `config.json`, and `params.safetensors` or `params_layer_N.safetensors`.

JumpReLU latents; nothing is subtracted before encoding. A transcoder has another site out than in,
and may add x times `affine_skip_connection`. A crosscoder has a file for each layer and
is weakly causal: the latents of file N read layer N alone and write all layers. Here that is one
dictionary, latents of layer 0 first, whose encoder is zero for the layers a latent does not read.
Format: google/gemma-scope-2-*; the layout of crosscoders by third parties' loaders.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.dictionaries.formats import _convert as convert
from jaxdiff.dictionaries.formats import _files as files
from jaxdiff.dictionaries.formats._format import Format, Imported, folder_of, unsupported
from jaxdiff.dictionaries.normalization import Normalization

SETTINGS, WEIGHTS, LAYER = "config.json", "params.safetensors", "params_layer_{}.safetensors"
SKIP = "affine_skip_connection"
_SHAPES = {"w_enc": "D L", "b_enc": "L", "w_dec": "L D", "b_dec": "D", "threshold": "L"}


def _matches(path: Path) -> bool:
    folder = folder_of(path)
    return (folder / WEIGHTS).is_file() or (folder / LAYER.format(0)).is_file()


def _read(path: Path) -> Imported:
    folder = folder_of(path)
    settings = files.read_settings(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    site, target = settings.get("hf_hook_point_in"), settings.get("hf_hook_point_out")
    transcoder = target not in (None, site)
    # Cross-layer transcoders have the files of a crosscoder.
    if any("clt" in part for part in folder.resolve().parts[-2:]):
        raise unsupported("a cross-layer transcoder", folder)
    if (folder / WEIGHTS).is_file():
        if settings.get("architecture", "jump_relu") != "jump_relu":
            raise unsupported(f"the architecture {settings['architecture']!r}", folder)
        found = files.read_tensors(folder / WEIGHTS)
        t = files.take(found, _SHAPES, folder / WEIGHTS, optional={SKIP: "D D"})
        weights, skip = (t[name] for name in _SHAPES if name != "threshold"), t.get(SKIP)
        rule: dict[str, Any] = {"activation": "jumprelu", "threshold": t["threshold"]}
        transcoder = transcoder or skip is not None
        d = convert.dictionary(*weights, **rule, W_skip=skip, transcoder=transcoder)
        return convert.imported(d)
    if transcoder:
        raise unsupported(f"a transcoder of several layers, from {site} to {target}", folder)
    return convert.imported(_crosscoder(folder))


def _tensors(path: Path, shapes: dict[str, str]) -> dict[str, Any]:
    return files.take(files.read_tensors(path), shapes, path)


def _crosscoder(folder: Path) -> Dictionary:
    paths = sorted(folder.glob(LAYER.format("*")), key=lambda p: int(p.stem.split("_")[-1]))
    layers = [_tensors(path, _SHAPES | {"w_dec": "L M D"}) for path in paths]
    width, n = layers[0]["b_dec"].size, len(layers)
    for layer, path in zip(layers, paths, strict=True):
        found = layer["w_dec"].shape[1:]
        if found != (n, width):
            raise unsupported(f"latents that write {found} in a crosscoder of {(n, width)}", path)
    starts = np.cumsum([0, *(layer["b_enc"].size for layer in layers)])
    W_enc = np.zeros((n, width, starts[-1]), np.float32)
    for m, layer in enumerate(layers):
        W_enc[m, :, starts[m] : starts[m + 1]] = layer["w_enc"]
    b_enc, W_dec, threshold = (
        np.concatenate([layer[name] for layer in layers])
        for name in ("b_enc", "w_dec", "threshold")
    )
    b_dec = np.stack([layer["b_dec"] for layer in layers])
    rule: dict[str, Any] = {"activation": "jumprelu", "threshold": threshold}
    return convert.dictionary(W_enc, b_enc, W_dec, b_dec, **rule)


def _write(d: Dictionary, normalization: Normalization, folder: Path) -> None:
    d = convert.raw(d, normalization)
    if d.W_dec.shape[1] == 1:
        d = convert.sae(d, folder, "Gemma Scope 2")
    threshold = convert.thresholds(d, folder, "Gemma Scope 2")
    found = convert.arrays(d)
    skip = {SKIP: found.pop("W_skip")} if "W_skip" in found else {}
    named = {name.lower(): array for name, array in found.items()} | skip
    tensors = {n: v.astype(np.float32) for n, v in (named | {"threshold": threshold}).items()}
    if d.W_dec.shape[1] == 1:
        files.write_tensors(folder / WEIGHTS, tensors)
    else:
        _write_crosscoder(tensors, folder)
    sites = {"hf_hook_point_in": "read", "hf_hook_point_out": "written"}
    sites = sites if d.reads != d.writes else {}
    files.write_settings(folder / SETTINGS, {"architecture": "jump_relu"} | sites)


def _write_crosscoder(tensors: dict[str, np.ndarray], folder: Path) -> None:
    reads = np.any(tensors["w_enc"] != 0, axis=1)
    owner = np.argmax(reads, axis=0)
    if (np.sum(reads, axis=0) > 1).any() or (np.diff(owner) < 0).any():
        raise unsupported("a latent that reads several layers, or latents out of order", folder)
    for m in range(len(reads)):
        own = owner == m
        layer = {name: tensors[name][own] for name in ("b_enc", "w_dec", "threshold")}
        layer |= {"w_enc": tensors["w_enc"][m][:, own], "b_dec": tensors["b_dec"][m]}
        files.write_tensors(folder / LAYER.format(m), layer)


FORMAT = Format(
    "Gemma Scope 2: config.json, params.safetensors (or params_layer_N.safetensors)",
    _matches,
    _read,
    _write,
    extras=frozenset(("transcoder", "skip")),
)
