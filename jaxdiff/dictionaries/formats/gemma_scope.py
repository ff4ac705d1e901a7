"""Gemma Scope 1: `params.npz` of a JumpReLU SAE; nothing is subtracted before encoding.

SAEs of the embedding were trained on rows of the table, before the model multiplies them by
sqrt(d_model); the site `embed` has them after. They are known by `embedding` in the path.
Format: google/gemma-scope-*; SAELens' gemma_2_sae_huggingface_loader.
"""

from pathlib import Path

import numpy as np

from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.dictionaries.formats import _convert as convert
from jaxdiff.dictionaries.formats import _files as files
from jaxdiff.dictionaries.formats._format import Format, Imported, folder_of
from jaxdiff.dictionaries.normalization import Normalization

WEIGHTS = "params.npz"
_SHAPES = {"W_enc": "D L", "b_enc": "L", "W_dec": "L D", "b_dec": "D", "threshold": "L"}


def _matches(path: Path) -> bool:
    return (folder_of(path) / WEIGHTS).is_file()


def _read(path: Path) -> Imported:
    where = folder_of(path) / WEIGHTS
    # Both spellings were published.
    found = {
        f"W_{name[2:]}" if name.startswith("w_") else name: value
        for name, value in files.read_tensors(where).items()
    }
    t = files.take(found, _SHAPES, where)
    threshold = t.pop("threshold")
    d = convert.dictionary(*t.values(), activation="jumprelu", threshold=threshold)
    embedding = any("embedding" in part for part in where.resolve().parts)
    return convert.imported(d, d.b_dec.shape[1] ** -0.5 if embedding else 1.0)


def _write(d: Dictionary, normalization: Normalization, folder: Path) -> None:
    d = convert.sae(convert.raw(d, normalization), folder, "Gemma Scope")
    threshold = convert.thresholds(d, folder, "Gemma Scope")
    tensors = convert.arrays(d) | {"threshold": threshold}
    files.write_tensors(folder / WEIGHTS, {n: v.astype(np.float32) for n, v in tensors.items()})


FORMAT = Format("Gemma Scope 1: params.npz", _matches, _read, _write)
