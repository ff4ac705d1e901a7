"""Sparse dictionaries over the activations of one or several models, as pytrees and functions."""

from jaxdiff.dictionaries.decoding import decode
from jaxdiff.dictionaries.dictionary import (
    Dictionary,
    code_norms,
    decoder_norms,
    encode,
    pre_activations,
    ranking_keys,
    read_by,
    written_by,
)
from jaxdiff.dictionaries.files import load, load_normalization, save
from jaxdiff.dictionaries.folding import fold
from jaxdiff.dictionaries.formats import (
    FORMATS,
    Imported,
    export_dictionary,
    import_dictionary,
)
from jaxdiff.dictionaries.initial import init
from jaxdiff.dictionaries.loss import Parts, loss, reconstruction_loss
from jaxdiff.dictionaries.normalization import Normalization
from jaxdiff.dictionaries.selection import train_codes

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
    "read_by",
    "reconstruction_loss",
    "save",
    "train_codes",
    "written_by",
]
