"""OpenAI's sparse autoencoders: one `.pt` file.

Encodes x - pre_bias. The file also says the activation; with TopK every token is normalised by its
own mean and deviation, for which a `Normalization` has no place.
Format: openai/sparse_autoencoder, model.py.
"""

from pathlib import Path

import numpy as np

from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.dictionaries.formats import _convert as convert
from jaxdiff.dictionaries.formats import _files as files
from jaxdiff.dictionaries.formats._format import Format, Imported, unsupported
from jaxdiff.dictionaries.normalization import Normalization

WEIGHTS = "autoencoder.pt"
_SHAPES = {
    "encoder.weight": "L D",
    "latent_bias": "L",
    "decoder.weight": "D L",
    "pre_bias": "D",
}
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def _matches(path: Path) -> bool:
    return path.is_file() and path.suffix == ".pt" or (path / WEIGHTS).is_file()


def _read(path: Path) -> Imported:
    where = path / WEIGHTS if path.is_dir() else path
    found = files.read_tensors(where)
    kind = found.pop("activation", "ReLU")
    found.pop("activation_state_dict", None)
    if kind == "TopK":
        raise unsupported("TopK, which normalises every token by its own mean and deviation", where)
    if kind != "ReLU":
        raise unsupported(f"the activation {kind}", where)
    t = files.take(found, _SHAPES, where, ignored=_STATISTICS)
    weights = t["encoder.weight"].T, t["latent_bias"], t["decoder.weight"].T, t["pre_bias"]
    return convert.imported(convert.dictionary(*weights, activation="relu", centred=True))


def _write(d: Dictionary, normalization: Normalization, folder: Path) -> None:
    d = convert.sae(convert.raw(d, normalization), folder, "OpenAI's format")
    if d.activation != "relu":
        raise unsupported(f"a {d.activation} dictionary in OpenAI's format", folder)
    a = convert.arrays(d)
    tensors = {
        "pre_bias": a["b_dec"],
        "latent_bias": convert.uncentred_bias(d),
        "encoder.weight": a["W_enc"].T,
        "decoder.weight": a["W_dec"].T,
    }
    latents = a["b_enc"].shape
    arrays = {n: v.astype(np.float32) for n, v in tensors.items()}
    statistics = (np.zeros(latents, np.int64), *(np.zeros(latents, np.float32) for _ in range(2)))
    state = arrays | dict(zip(_STATISTICS, statistics, strict=True)) | {"activation": "ReLU"}
    files.write_tensors(folder / WEIGHTS, state)


FORMAT = Format("OpenAI's sparse_autoencoder: a .pt file", _matches, _read, _write)
