"""Dictionaries from and to the files of other tools; one file a format, one line here."""

from pathlib import Path

from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.dictionaries.formats import (
    crosscode,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    kissane,
    llama_scope,
    llamascopium,
    openai,
    saelens,
    science_of_finetuning,
    sparsify,
)
from jaxdiff.dictionaries.formats._format import Format, Imported, unsupported
from jaxdiff.dictionaries.normalization import Normalization
from jaxdiff.errors import JaxdiffError

# Files are tried in this order, the most particular names first.
FORMATS: dict[str, Format] = {
    "saelens": saelens.FORMAT,
    "sparsify": sparsify.FORMAT,
    "llama_scope": llama_scope.FORMAT,
    "llamascopium": llamascopium.FORMAT,
    "gemma_scope": gemma_scope.FORMAT,
    "gemma_scope_2": gemma_scope_2.FORMAT,
    "kissane": kissane.FORMAT,
    "crosscode": crosscode.FORMAT,
    "dictionary_learning": dictionary_learning.FORMAT,
    "science_of_finetuning": science_of_finetuning.FORMAT,
    "openai": openai.FORMAT,
}


def import_dictionary(path: str | Path, format: str | None = None) -> Imported:
    """Reads a dictionary that another tool wrote.

    Its latents are the tool's own: `encode(found.dictionary, found.normalization.apply(x))` is what
    the tool's encoder makes of raw activations `x`, except that it does not shift or scale tokens
    one by one. A gated SAE becomes the jumprelu one that it is equal to; a transcoder reads source
    0 of a batch and writes source 1. `.pt` files are read without running what they contain.

    Args:
        path: Folder of the files, or one of them.
        format: A name in `FORMATS`; found from the names of the files when None.

    Returns:
        The dictionary and the normalisation before it.

    Raises:
        JaxdiffError: If there is nothing, or nothing known, at `path`; if tensors are missing, not
            known or of a wrong shape; or if the format has something that a dictionary has not.
    """
    path = Path(path)
    if not path.exists():
        raise JaxdiffError("there is no such file or folder", where=path)
    name = format or next((n for n, f in FORMATS.items() if f.matches(path)), None)
    if name is None:
        raise JaxdiffError(
            "these are the files of no known format:\n  " + "\n  ".join(_list()),
            where=path,
            fix="name the folder that has the weights, or the format",
        )
    try:
        return _known(name).read(path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise JaxdiffError(
            f"the settings are not those of {name}: {type(error).__name__}: {error}", where=path
        ) from error


def export_dictionary(
    d: Dictionary, path: str | Path, format: str, normalization: Normalization | None = None
) -> None:
    """Writes a dictionary as another tool would.

    The tool's encoder then gives the latents of `d`, with one exception: formats that keep decoders
    at norm 1 have latents ranked by value times norm as their values. batch_topk becomes jumprelu
    where a format has that for inference. Biases are folded as the format's encoder needs them.

    Args:
        d: The dictionary.
        path: Folder to write into; made when missing.
        format: A name in `FORMATS`.
        normalization: What is done to activations before `d`; folded into it where the format has
            no place for it.

    Raises:
        JaxdiffError: If the format is not known, or has no place for such a dictionary.
    """
    shape = (d.sources, d.b_dec.shape[1])
    found, known = _extras(d), _known(format)
    if missing := sorted(found - known.extras):
        raise unsupported(f"a {' and '.join(missing)} dictionary in {format}", Path(path))
    known.write(d, normalization or Normalization.identity(shape), Path(path))


def _extras(d: Dictionary) -> frozenset[str]:
    has = {
        "transcoder": d.reads != d.writes,
        "skip": d.W_skip is not None,
        "group_max": d.activation == "group_max",
    }
    return frozenset(name for name, there in has.items() if there)


def _known(format: str) -> Format:
    if format not in FORMATS:
        raise JaxdiffError(
            f"there is no format {format!r}; known are:\n  " + "\n  ".join(_list()), where="format"
        )
    return FORMATS[format]


def _list() -> list[str]:
    return [f"{name:22} {format.about}" for name, format in FORMATS.items()]
