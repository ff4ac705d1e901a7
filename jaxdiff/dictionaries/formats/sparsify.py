"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors`.

A TopK SAE encodes x - b_dec, whatever the settings say of decoder norms; a transcoder does not. A
skip connection adds x W_skip^T. groupmax takes the largest of each of k groups.
`encoder.weight` and `W_dec` both lie as [latents, width].
Format: eai-sparsify 1.3.3, sparse_coder.py.
"""

from pathlib import Path

import numpy as np

from jaxdiff.dictionaries.dictionary import Activation, Dictionary
from jaxdiff.dictionaries.formats import _convert as convert
from jaxdiff.dictionaries.formats import _files as files
from jaxdiff.dictionaries.formats._format import Format, Imported, folder_of, unsupported
from jaxdiff.dictionaries.normalization import Normalization

SETTINGS, WEIGHTS = "cfg.json", "sae.safetensors"
_SHAPES = {"encoder.weight": "L D", "encoder.bias": "L", "W_dec": "L D", "b_dec": "D"}

_RULES: dict[str, Activation] = {"topk": "topk", "groupmax": "group_max"}


def _matches(path: Path) -> bool:
    folder = folder_of(path)
    return (folder / SETTINGS).is_file() and (folder / WEIGHTS).is_file()


def _read(path: Path) -> Imported:
    folder = folder_of(path)
    settings, where = files.read_settings(folder / SETTINGS), folder / WEIGHTS
    found = files.read_tensors(where)
    transcoder, kind = bool(settings.get("transcode")), settings.get("activation", "topk")
    if kind not in _RULES or settings.get("signed"):
        raise unsupported(f"the activation {'signed ' if kind in _RULES else ''}{kind}", folder)
    shapes = _SHAPES | ({"W_skip": "D D"} if settings.get("skip_connection") else {})
    t = files.take(found, shapes, where)
    weights = t["encoder.weight"].T, t["encoder.bias"], t["W_dec"], t["b_dec"]
    k = files.setting(settings, "k", folder / SETTINGS)
    skip = t["W_skip"].T if "W_skip" in t else None
    rule = {"activation": _RULES[kind], "k": k, "centred": not transcoder}
    return convert.imported(
        convert.dictionary(*weights, **rule, W_skip=skip, transcoder=transcoder)
    )


def _write(d: Dictionary, normalization: Normalization, folder: Path) -> None:
    d = convert.sae(convert.raw(d, normalization), folder, "sparsify")
    if d.activation not in _RULES.values():
        raise unsupported(f"a {d.activation} dictionary in sparsify, which has topk only", folder)
    d, transcoder = convert.unit_decoders(d), d.reads != d.writes
    a = convert.arrays(d)
    width, latents = a["W_enc"].shape
    tensors = {
        "encoder.weight": a["W_enc"].T,
        "encoder.bias": a["b_enc"] if transcoder else convert.uncentred_bias(d),
        "W_dec": a["W_dec"],
        "b_dec": a["b_dec"],
    } | ({"W_skip": a["W_skip"].T} if "W_skip" in a else {})
    settings = {
        "activation": "topk" if d.activation == "topk" else "groupmax",
        "expansion_factor": max(latents // width, 1),
        "normalize_decoder": True,
        "num_latents": latents,
        "k": round(d.k),
        "multi_topk": False,
        "skip_connection": "W_skip" in a,
        "transcode": transcoder,
        "d_in": width,
    }
    files.write_tensors(folder / WEIGHTS, {n: v.astype(np.float32) for n, v in tensors.items()})
    files.write_settings(folder / SETTINGS, settings)


FORMAT = Format(
    "sparsify: cfg.json, sae.safetensors",
    _matches,
    _read,
    _write,
    extras=frozenset(("transcoder", "skip", "group_max")),
)
