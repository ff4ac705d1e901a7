"""Sparse dictionaries over the activations of one or several models, as pytrees and functions."""

from jaxdiff.dictionaries.dictionary import (
    Dictionary,
    code_norms,
    decode,
    decoder_norms,
    encode,
    fold,
    init,
    pre_activations,
    ranking_keys,
)
from jaxdiff.dictionaries.files import load, load_normalization, save
from jaxdiff.dictionaries.formats import (
    FORMATS,
    Imported,
    export_dictionary,
    import_dictionary,
)
from jaxdiff.dictionaries.loss import Parts, loss, reconstruction_loss, train_codes
from jaxdiff.dictionaries.normalization import Normalization

__all__ = [
    "FORMATS",
    "Dictionary",
    "Imported",
    "Normalization",
    "Parts",
    "code_norms",
    "decode",
    "decoder_norms",
    "encode",
    "export_dictionary",
    "fold",
    "import_dictionary",
    "init",
    "load",
    "load_normalization",
    "loss",
    "pre_activations",
    "ranking_keys",
    "reconstruction_loss",
    "save",
    "train_codes",
]
