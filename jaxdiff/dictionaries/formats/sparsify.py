"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors`.

A TopK SAE encodes x - b_dec, whatever the settings say of decoder norms; a transcoder does not.
`encoder.weight` and `W_dec` both lie as [latents, width].
Format: eai-sparsify 1.3.3, sparse_coder.py.
"""

from pathlib import Path

import numpy as np

from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.dictionaries.formats import _convert as convert
from jaxdiff.dictionaries.formats import _files as files
from jaxdiff.dictionaries.formats._format import Format, Imported, folder_of, unsupported
from jaxdiff.dictionaries.normalization import Normalization

SETTINGS, WEIGHTS = "cfg.json", "sae.safetensors"
_SHAPES = {"encoder.weight": "L D", "encoder.bias": "L", "W_dec": "L D", "b_dec": "D"}


def _matches(path: Path) -> bool:
    folder = folder_of(path)
    return (folder / SETTINGS).is_file() and (folder / WEIGHTS).is_file()


def _read(path: Path) -> Imported:
    folder = folder_of(path)
    settings, where = files.read_settings(folder / SETTINGS), folder / WEIGHTS
    found = files.read_tensors(where)
    if settings.get("transcode"):
        raise unsupported("a transcoder, which reads one site and writes another", folder)
    if settings.get("skip_connection") or "W_skip" in found:
        raise unsupported("a skip connection (W_skip)", folder)
    if settings.get("activation", "topk") != "topk" or settings.get("signed"):
        kind = "signed topk" if settings.get("signed") else settings["activation"]
        raise unsupported(f"the activation {kind}", folder)
    t = files.take(found, _SHAPES, where)
    weights = t["encoder.weight"].T, t["encoder.bias"], t["W_dec"], t["b_dec"]
    k = files.setting(settings, "k", folder / SETTINGS)
    return convert.imported(convert.dictionary(*weights, activation="topk", k=k, centred=True))


def _write(d: Dictionary, normalization: Normalization, folder: Path) -> None:
    d = convert.sae(convert.raw(d, normalization), folder, "sparsify")
    if d.activation != "topk":
        raise unsupported(f"a {d.activation} dictionary in sparsify, which has topk only", folder)
    d = convert.unit_decoders(d)
    a = convert.arrays(d)
    width, latents = a["W_enc"].shape
    tensors = {
        "encoder.weight": a["W_enc"].T,
        "encoder.bias": convert.uncentred_bias(d),
        "W_dec": a["W_dec"],
        "b_dec": a["b_dec"],
    }
    settings = {
        "activation": "topk",
        "expansion_factor": max(latents // width, 1),
        "normalize_decoder": True,
        "num_latents": latents,
        "k": round(d.k),
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": width,
    }
    files.write_tensors(folder / WEIGHTS, {n: v.astype(np.float32) for n, v in tensors.items()})
    files.write_settings(folder / SETTINGS, settings)


FORMAT = Format("sparsify: cfg.json, sae.safetensors", _matches, _read, _write)
