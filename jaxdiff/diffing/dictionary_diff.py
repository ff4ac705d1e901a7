"""What one dictionary says about the difference between two models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from jaxdiff import dictionaries
from jaxdiff.activations import Normalization
from jaxdiff.config import DiffConfig
from jaxdiff.dictionaries import Dictionary
from jaxdiff.diffing import document, examples, truth
from jaxdiff.diffing.latent_scaling import LatentScaling, latent_scaling, scaling_statistic
from jaxdiff.diffing.norms import classes, cosine, relative_norm
from jaxdiff.diffing.truth import Behaviour, LabelledCodes, Match
from jaxdiff.diffing.verdicts import reasons, verdicts
from jaxdiff.errors import JaxdiffError
from jaxdiff.stats import (
    Firing,
    FiringResult,
    Fve,
    Rows,
    Scaling,
    Strongest,
    Variance,
    blocks,
    fold,
)
from jaxdiff.types import FT, ActivationBatch


@dataclass(frozen=True)
class DictionaryDiff:
    """The diff of two models through one dictionary, for all L latents.

    Attributes:
        dictionary: What is known about the dictionary: activation, latents, k, threshold.
        config: Settings of the diff.
        fve: Fraction of variance explained.
        firing: How often and how strongly latents fire, by role.
        sequences: Documents that were seen.
        relative_norm: In the dictionary's (normalised) space; 0 base only, 1 fine-tuned only.
        relative_norm_raw: The same in the models' own space.
        cosine: Between the two decoders; NaN where one is zero.
        classes: ft_only, base_only, shared, other by `relative_norm`; dead where never active.
        scaling: Latent Scaling.
        verdict: exclusive, shrunk, decoupled, shared or undecided.
        reason: Why a latent is undecided; empty otherwise.
        matches: Best latents of each known behaviour.
        behaviour_auroc: AUROC of every latent for each of the K known behaviours.
        examples: Strongest examples, by latent.
    """

    dictionary: Mapping[str, Any]
    config: DiffConfig
    fve: Fve
    firing: FiringResult
    sequences: int
    relative_norm: Float[np.ndarray, " L"]
    relative_norm_raw: Float[np.ndarray, " L"]
    cosine: Float[np.ndarray, " L"]
    classes: np.ndarray
    scaling: LatentScaling
    verdict: np.ndarray
    reason: np.ndarray
    matches: tuple[Match, ...]
    behaviour_auroc: Float[np.ndarray, "K L"]
    examples: Mapping[int, tuple[examples.Example, ...]]

    @property
    def alive(self) -> Bool[np.ndarray, " L"]:
        """Latents that fired."""
        return self.firing.counts > 0

    def to_json(self, describe: Callable[[int], str] | None = None) -> dict[str, Any]:
        """Returns everything as plain JSON values; numbers are finite or None.

        Args:
            describe: Text of a token id; the id itself when None.
        """
        return document.document(self, describe)


def diff(
    dictionary: Dictionary,
    rows: Rows,
    *,
    normalization: Normalization,
    config: DiffConfig | None = None,
    behaviours: Sequence[Behaviour] = (),
    seed: int = 0,
    mesh: Mesh | None = None,
) -> DictionaryDiff:
    """Compares two models through a dictionary that reads both (arXiv:2504.02922).

    One pass over the activations measures everything; a second one reads the rows around the
    strongest examples only. Where the dictionary is decoupled, a latent's value is the larger of
    the two models' for firing and examples, and its own side's for Latent Scaling.

    Args:
        dictionary: A dictionary of normalised activations of base and fine-tuned model.
        rows: Raw activations that it was not trained on: an `activations.Store`, or
            `stats.InMemory.of(batch)`.
        normalization: The normalisation that the dictionary was trained with.
        config: Settings; the defaults when None.
        behaviours: Planted differences to look for; none when the truth is not known.
        seed: Fixes the bootstrap resamples and which examples are shown.
        mesh: Devices; the default device when None.

    Returns:
        The diff.

    Raises:
        JaxdiffError: If the dictionary does not read two models, its shape is not that of the
            activations, or no row can be used.
    """
    config = config or DiffConfig()
    _check(dictionary, rows)
    latents, models, width = dictionary.W_dec.shape
    scaling = scaling_statistic(
        dictionary.W_dec, resamples=config.bootstrap, key=jax.random.key(seed)
    )
    codes, documents = LabelledCodes(), _Documents()
    space = {"mean": normalization.mean, "scale": normalization.scale}
    measured = fold(
        {
            "variance": Variance(models, width),
            "firing": Firing(latents),
            "scaling": scaling,
            "strongest": Strongest(latents, config.examples),
        },
        blocks(rows, config.batch),
        dictionary=dictionary,
        mesh=mesh,
        watch=(documents, codes) if behaviours else (documents,),
        title="diff",
        total=rows.rows,
        **space,
    )
    if measured["firing"].tokens == 0:
        raise JaxdiffError(
            f"all {rows.rows} rows are masked, none is left to measure on",
            where="harvest.outlier, harvest.skip",
            fix="mask fewer positions or use more text",
        )
    result = _judge(dictionary, normalization, config, scaling, measured)
    return DictionaryDiff(
        dictionary=_describe(dictionary),
        config=config,
        fve=measured["variance"],
        firing=measured["firing"],
        sequences=len(documents.seen),
        **result,
        **_match(codes, behaviours, result, config),
        examples=examples.collect(
            rows,
            dictionary,
            measured["strongest"],
            _shown(result, seed),
            window=config.window,
            batch=config.batch,
            **space,
        ),
    )


def _judge(
    dictionary: Dictionary,
    normalization: Normalization,
    config: DiffConfig,
    statistic: Scaling,
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    norms = np.asarray(dictionaries.decoder_norms(dictionary), np.float64)
    relative = relative_norm(norms)
    scaling = latent_scaling(statistic, measured["scaling"], confidence=config.confidence)
    verdict = verdicts(relative, scaling, config)
    return {
        "relative_norm": relative,
        "relative_norm_raw": relative_norm(norms / np.asarray(normalization.scale)[None]),
        "cosine": cosine(np.asarray(dictionary.W_dec)),
        "classes": classes(relative, measured["firing"].counts > 0),
        "scaling": scaling,
        "verdict": verdict,
        "reason": reasons(verdict, relative, scaling, config),
    }


def _match(
    codes: LabelledCodes,
    behaviours: Sequence[Behaviour],
    result: Mapping[str, Any],
    config: DiffConfig,
) -> dict[str, Any]:
    alive = result["classes"] != "dead"
    if not behaviours:
        return {"matches": (), "behaviour_auroc": np.zeros((0, len(alive)))}
    exclusive = alive & (result["verdict"] == "exclusive") & (result["scaling"].side == FT)
    matches, areas = truth.match(
        codes, behaviours, alive=alive, exclusive=exclusive, threshold=config.auroc
    )
    return {"matches": matches, "behaviour_auroc": areas}


def _shown(result: Mapping[str, Any], seed: int) -> np.ndarray:
    alive = result["classes"] != "dead"
    special = np.isin(result["classes"], ("ft_only", "base_only"))
    special |= np.isin(result["verdict"], ("exclusive", "shrunk", "decoupled"))
    return examples.choose_latents(alive, special, seed=seed)


def _describe(dictionary: Dictionary) -> dict[str, Any]:
    threshold = np.asarray(dictionary.threshold, np.float64)
    # One number where there is one; a threshold of each model or latent is not shown.
    scalar = float(threshold) if threshold.ndim == 0 and dictionary.activation != "relu" else None
    return {
        "activation": dictionary.activation,
        "latents": dictionary.W_dec.shape[0],
        "k": dictionary.k,
        "threshold": scalar,
    }


class _Documents:
    """Watches a pass and counts the documents that have a row that counts."""

    def __init__(self):
        self.seen: set[int] = set()

    def __call__(self, batch: ActivationBatch, codes: jax.Array) -> None:
        del codes
        mask = np.asarray(batch.mask)
        self.seen.update(np.unique(np.asarray(batch.sequences)[mask]).tolist())


def _check(dictionary: Dictionary, rows: Rows) -> None:
    """Refuses a dictionary or activations that are not of two models."""
    latents, models, width = dictionary.W_dec.shape
    if models != 2 or dictionary.reads is not None or dictionary.writes is not None:
        raise JaxdiffError(
            "a diff needs a dictionary of two models, this one reads "
            f"{dictionary.W_enc.shape[0]} sources and writes {models}",
            where=f"dictionary with {latents} latents",
            fix="train it on activations of the base and the fine-tuned model",
        )
    if rows.rows == 0:
        raise JaxdiffError("there are no activations to measure", fix="raise text.test_sequences")
    shape = rows.read(0, 1).x.shape[1:]
    if shape != (models, width):
        raise JaxdiffError(
            f"the dictionary reads [models, width] = [{models}, {width}], "
            f"the activations are {list(shape)}",
            fix="use the site and models that the dictionary was trained on",
        )
