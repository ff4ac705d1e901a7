"""The crosscoder scripts of Connor Kissane and Neel Nanda: `cfg.json` and `cc_weights.pt`.

Locally `VERSION.pt` beside `VERSION_cfg.json`. The decoder bias is not subtracted before encoding.
The activations were scaled before training, model by model, by factors that the files do not have:
`Imported.normalization` is the identity, and whoever knows the factors sets its scale.
Format: ckkissane/crosscoder-model-diff-replication, crosscoder.py.
"""

from pathlib import Path

import numpy as np

from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.dictionaries.formats import _convert as convert
from jaxdiff.dictionaries.formats import _files as files
from jaxdiff.dictionaries.formats._format import Format, Imported, folder_of, unsupported
from jaxdiff.dictionaries.normalization import Normalization

SETTINGS, WEIGHTS = "cfg.json", "cc_weights.pt"
_SHAPES = {"W_enc": "M D L", "b_enc": "L", "W_dec": "L M D", "b_dec": "M D"}


def _matches(path: Path) -> bool:
    own = path.with_name(f"{path.stem}_cfg.json").is_file() and path.suffix == ".pt"
    return own or (folder_of(path) / WEIGHTS).is_file()


def _read(path: Path) -> Imported:
    where = path if path.is_file() and path.suffix == ".pt" else folder_of(path) / WEIGHTS
    tensors = files.take(files.read_tensors(where), _SHAPES, where)
    weights = (tensors[name] for name in _SHAPES)
    d = convert.dictionary(*weights, activation="relu", code_norm="crosscoder")
    return convert.imported(d)


def _write(d: Dictionary, normalization: Normalization, folder: Path) -> None:
    d = convert.raw(d, normalization)
    if d.activation != "relu" or d.code_norm == "decoupled":
        raise unsupported(f"a {d.code_norm} {d.activation} dictionary in this format", folder)
    tensors = {name: np.asarray(getattr(d, name), np.float32) for name in _SHAPES}
    models, width, latents = tensors["W_enc"].shape
    settings = {
        "d_in": width,
        "dict_size": latents,
        "n_models": models,
        "enc_dtype": "fp32",
        "dec_init_norm": 0.08,
        "seed": 0,
        "device": "cpu",
    }
    files.write_tensors(folder / WEIGHTS, tensors)
    files.write_settings(folder / SETTINGS, settings)


FORMAT = Format(
    "crosscoders of Kissane and Nanda: cfg.json, cc_weights.pt", _matches, _read, _write
)
