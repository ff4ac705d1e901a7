"""A `DictionaryDiff` as plain JSON values, the part of results.json that it fills."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdiff.diffing.norms import CLASSES
from jaxdiff.diffing.verdicts import VERDICTS
from jaxdiff.types import BASE, FT, Role

if TYPE_CHECKING:
    from jaxdiff.diffing.dictionary_diff import DictionaryDiff

_SIDES = {BASE: "base", FT: "ft"}
# The class borders 0.1, 0.4, 0.6 and 0.9 are edges.
_BINS = 40


def document(diff: "DictionaryDiff", describe: Callable[[int], str] | None) -> dict[str, Any]:
    """Returns the diff as JSON values; see `DictionaryDiff.to_json`."""
    alive = diff.alive
    return {
        **diff.dictionary,
        "k": number(diff.dictionary["k"]),
        "threshold": number(diff.dictionary["threshold"]),
        "l0": number(diff.firing.l0),
        "fve": {
            "base": number(diff.fve.models[BASE]),
            "ft": number(diff.fve.models[FT]),
            "all": number(diff.fve.all),
        },
        "dead_fraction": number(1 - alive.mean()),
        "alive": int(alive.sum()),
        "tokens": diff.firing.tokens,
        "sequences": diff.sequences,
        "counts": _count(diff.classes, CLASSES),
        "latent_scaling": _count(diff.verdict[alive], VERDICTS),
        "latent_scaling_ft_only": _count(diff.verdict[diff.classes == "ft_only"], VERDICTS),
        "norm_histogram": _histogram(diff.relative_norm[alive]),
        "roles": _roles(diff),
        "truth": [_truth(diff, match) for match in diff.matches],
        "table": [_row(diff, latent) for latent in _order(diff).tolist()],
        "examples": {
            str(latent): [_example(item, describe) for item in items]
            for latent, items in diff.examples.items()
        },
    }


def number(x: Any, digits: int = 6) -> float | None:
    """Returns a float with that many significant digits; None if it is not finite."""
    if x is None or not math.isfinite(x):
        return None
    return float(f"{float(x):.{digits}g}")


def _count(names: np.ndarray, order: tuple[str, ...]) -> dict[str, int]:
    return {name: int((names == name).sum()) for name in order}


def _histogram(relative: np.ndarray) -> dict[str, list]:
    counts, edges = np.histogram(relative[np.isfinite(relative)], bins=_BINS, range=(0, 1))
    return {"edges": [number(edge) for edge in edges], "counts": counts.tolist()}


def _roles(diff: "DictionaryDiff") -> dict[str, dict[str, Any]]:
    firing = diff.firing
    return {
        role.name.lower(): {
            "tokens": int(firing.role_tokens[role]),
            "l0": number(firing.role_l0[role]),
        }
        for role in Role
    }


def _truth(diff: "DictionaryDiff", match) -> dict[str, Any]:
    best = _judged(diff, match.latent, match.auroc)
    return {
        "behaviour": match.behaviour.name,
        "kind": match.behaviour.kind,
        **best,
        "found": bool(match.found),
        "tokens": match.tokens,
        "best_any": _judged(diff, match.best_any, match.best_any_auroc),
    }


def _judged(diff: "DictionaryDiff", latent: int | None, auroc: float) -> dict[str, Any]:
    known = latent is not None
    return {
        "latent": latent,
        "auroc": number(auroc),
        "relative_norm": number(diff.relative_norm[latent]) if known else None,
        "verdict": str(diff.verdict[latent]) if known else None,
    }


def _order(diff: "DictionaryDiff") -> np.ndarray:
    """Returns alive latents: by verdict, then the most one-sided first, then the most frequent."""
    latents = np.flatnonzero(diff.alive)
    rank = np.array([VERDICTS.index(name) for name in diff.verdict[latents]], int)
    one_sided = np.nan_to_num(np.abs(diff.relative_norm[latents] - 0.5))
    return latents[np.lexsort((-diff.firing.frequency[latents], -one_sided, rank))]


def _row(diff: "DictionaryDiff", latent: int) -> dict[str, Any]:
    firing, scaling = diff.firing, diff.scaling
    return {
        "latent": latent,
        "class": str(diff.classes[latent]),
        "verdict": str(diff.verdict[latent]),
        "reason": str(diff.reason[latent]) or None,
        "side": _SIDES[int(scaling.side[latent])],
        "relative_norm": number(diff.relative_norm[latent]),
        "relative_norm_raw": number(diff.relative_norm_raw[latent]),
        "cosine": number(diff.cosine[latent]),
        "nu_reconstruction": _interval(scaling.nu_reconstruction[latent]),
        "nu_error": _interval(scaling.nu_error[latent]),
        "effective_sequences": number(scaling.sequences[latent]),
        "frequency": number(firing.frequency[latent]),
        "max_activation": number(firing.max[latent]),
        "mean_activation": number(firing.mean[latent]),
        "roles": {
            role.name.lower(): number(firing.role_share[role, latent])
            for role in Role
            if firing.role_share[role, latent] > 0
        },
        **_behaviour(diff, latent),
    }


def _behaviour(diff: "DictionaryDiff", latent: int) -> dict[str, Any]:
    """Returns the behaviour that the latent separates best, if as well as `config.auroc`."""
    areas = np.nan_to_num(diff.behaviour_auroc[:, latent])
    if not len(areas) or areas.max() < diff.config.auroc:
        return {"behaviour": None, "behaviour_auroc": None}
    best = int(areas.argmax())
    return {
        "behaviour": diff.matches[best].behaviour.name,
        "behaviour_auroc": number(areas[best]),
    }


def _interval(values: np.ndarray) -> list[float | None] | None:
    if not np.isfinite(values).all():
        return None
    return [number(value) for value in values]


def _example(item, describe: Callable[[int], str] | None) -> dict[str, Any]:
    text = describe or (lambda token: str(token))
    return {
        "sequence": item.sequence,
        "value": number(item.value, 4),
        "at": item.at,
        "tokens": [text(int(token)) for token in item.tokens],
        "values": [number(value, 4) for value in item.values],
        "roles": [int(role) for role in item.roles],
    }
