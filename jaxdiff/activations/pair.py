"""The models that are harvested together."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, canonical_site, sites
from jaxdiff.models._check import check_no_rows
from jaxdiff.types import HostOrDevice

SEPARATOR = ", "
"""Between the names of several sites."""


@dataclass(frozen=True)
class ModelPair:
    """Models that read the same tokens: base and fine-tuned, more of them, or one alone for an SAE.

    Attributes:
        models: M models; their configs may differ where activations and vocabulary do not.
        base_token_map: Token ids that are replaced before the first model reads them.
        names: What messages call the first models.
    """

    models: tuple[LM, ...]
    base_token_map: Mapping[int, int] = field(default_factory=dict)
    names: tuple[str, ...] = ("base", "ft")

    def tokens(self, tokens: Int[HostOrDevice, "B T"]) -> Int[np.ndarray, "M B T"]:
        """Returns the tokens that each model reads.

        Raises:
            JaxdiffError: If a token is not in the models' vocabulary.
        """
        vocab = self.models[0].spec.vocab_size
        if tokens.size and (tokens.max() >= vocab or tokens.min() < 0):
            raise JaxdiffError(
                f"token {tokens.max()} is not in the models' vocabulary of {vocab} tokens",
                where="tokenizer",
                fix="use the models' own tokenizer",
            )
        tokens = np.asarray(tokens, np.int32)
        table = np.arange(vocab, dtype=np.int32)
        table[list(self.base_token_map)] = list(self.base_token_map.values())
        return np.stack([table[tokens], *[tokens] * (len(self.models) - 1)])


def check_pair(pair: ModelPair, site: str) -> tuple[str, tuple[int, int]]:
    """Checks that the models can be compared at a site, before anything is compiled.

    Args:
        pair: The models.
        site: One site, or several separated by commas.

    Returns:
        The canonical names of the sites, and the shape (S, D) of one row of activations there. Each
        model at each site is a source: all models at the first site come first.

    Raises:
        JaxdiffError: If vocabularies or widths differ, a model has no such site, its activations
            are no vectors, or `base_token_map` leaves the vocabulary; or if a model carries edits
            of some rows: rows are texts that nobody numbers.
    """
    specs = [lm.spec for lm in pair.models]
    _check_tokens(pair)
    for lm in pair.models:
        check_no_rows(lm, "harvest")
    found = [_check_site(pair, name.strip()) for name in site.split(",")]
    names, widths = zip(*found, strict=True)
    if len(set(widths)) > 1:
        raise JaxdiffError(
            "the sites have activations of different width: "
            + ", ".join(f"{name} {width}" for name, width in found),
            where="site",
            fix="read sites of one width together",
        )
    return SEPARATOR.join(names), (len(specs) * len(names), widths[0])


def source_name(pair: ModelPair, site: str, source: int) -> str:
    """Returns what messages call a source, by its number and the canonical names of the sites."""
    at, model = divmod(source, len(pair.models))
    known = model < len(pair.names)
    whose = f"the {pair.names[model]} model's" if known else f"model {model + 1}'s"
    sites = site.split(SEPARATOR)
    return f"{whose} activations" + (f" at {sites[at]}" if len(sites) > 1 else "")


def _check_tokens(pair: ModelPair) -> None:
    specs = [lm.spec for lm in pair.models]
    vocabs = [spec.vocab_size for spec in specs]
    if len(set(vocabs)) > 1:
        raise JaxdiffError(
            f"the models have different vocabularies: {_list(pair, vocabs)} tokens",
            where="models",
            fix="compare models that share a tokenizer",
        )
    outside = [t for item in pair.base_token_map.items() for t in item if not 0 <= t < vocabs[0]]
    if outside:
        raise JaxdiffError(
            f"token {outside[0]} is not in the models' vocabulary of {vocabs[0]} tokens",
            where="models.base_token_map",
        )


def _check_site(pair: ModelPair, site: str) -> tuple[str, int]:
    """Returns the canonical name of a site, and its width."""
    specs = [lm.spec for lm in pair.models]
    names = [canonical_site(spec, site) for spec in specs]
    shapes = [sites(spec)[name][2:] for spec, name in zip(specs, names, strict=True)]
    if len(set(shapes)) > 1 or len(set(names)) > 1:
        raise JaxdiffError(
            f"the models have activations of different shape at {site}: {_list(pair, shapes)}",
            where="models",
            fix="compare models of the same width",
        )
    if len(shapes[0]) != 1 or not isinstance(shapes[0][0], int):
        raise JaxdiffError(f"activations at {site} are no vectors: {shapes[0]}", where="site")
    return names[0], shapes[0][0]


def _list(pair: ModelPair, values: list) -> str:
    return ", ".join(f"{n} {v}" for n, v in zip(pair.names, values, strict=False))
