"""The headline findings in plain words, computed from the numbers, whatever they say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxdiff.report.words import name_of

# Two dictionaries have equal L0 when the larger is at most this much above the smaller.
_EQUAL_L0 = 0.05
# The null pair counts as clean up to this part of the fine-tune-only latents of the real pair.
_NULL_PART = 0.1

_Results = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One headline.

    Attributes:
        figure: The number that says it, for the eye.
        caption: What the figure counts, and of which dictionaries, on two lines.
        text: One sentence.
        detail: What the sentence stands on.
        as_expected: Whether it is as the method's paper leads to expect; None when it says nothing.
    """

    figure: str
    caption: str
    text: str
    detail: str
    as_expected: bool | None = None


def findings(results: _Results) -> list[Finding]:
    """Returns the headlines of a comparison; results must have passed `check`.

    Args:
        results: Contents of results.json.

    Returns:
        Findings, the most telling first; empty when there is no dictionary.
    """
    if not results["dictionaries"]:
        return []
    found = _behaviours(results) if results["behaviours"] else _exclusives(results)
    parts = [found, _counts(results), _rejected(results), _gains(results), _null(results)]
    return [part for part in parts if part is not None]


def found_of(dictionary: Mapping[str, Any]) -> tuple[int, int]:
    """Returns how many planted new behaviours were found, and how many there are."""
    rows = [row for row in dictionary["truth"] if row["kind"] != "gain"]
    return sum(row["found"] for row in rows), len(rows)


def mistaken(row: Mapping[str, Any], auroc: float) -> bool:
    """Returns whether a concept of both models, with changed gain, was taken for a new one.

    Args:
        row: Row of `truth`, kind gain.
        auroc: AUROC from which a latent stands for a concept.
    """
    best = row["best_any"] or {"verdict": None, "auroc": None}
    taken = best["verdict"] == "exclusive" and (best["auroc"] or 0) >= auroc
    return row["found"] or taken


def mistaken_of(dictionary: Mapping[str, Any], auroc: float) -> tuple[int, int]:
    """Returns how many concepts of changed gain were taken for new, and how many there are."""
    rows = [row for row in dictionary["truth"] if row["kind"] == "gain"]
    return sum(mistaken(row, auroc) for row in rows), len(rows)


def rejected(dictionary: Mapping[str, Any]) -> int:
    """Returns how many fine-tune-only latents Latent Scaling says the base model has too."""
    verdicts = dictionary["latent_scaling_ft_only"]
    return verdicts["shrunk"] + verdicts["decoupled"] + verdicts["shared"]


def join(parts: Sequence[str]) -> str:
    """Returns the parts as an English list."""
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)


def plural(count: int, noun: str) -> str:
    """Returns a count with its noun."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _behaviours(results: _Results) -> Finding | None:
    counts = {name: found_of(d) for name, d in results["dictionaries"].items()}
    counts = {name: count for name, count in counts.items() if count[1]}
    if not counts:
        return None
    (first, (found, total)), *rest = counts.items()
    text = f"{name_of(first)} finds {found} of {plural(total, 'planted behaviour')}"
    text += "".join(f"; {name_of(name)} finds {count} of {of}" for name, (count, of) in rest)
    missed = [_missed(name, results["dictionaries"][name]) for name in counts]
    bar = results["config"]["diff"]["auroc"]
    detail = (
        "Found means: one latent with verdict exclusive separates the behaviour's tokens on "
        f"held-out chats with AUROC at least {bar:g}. " + " ".join(missed)
    )
    return Finding(f"{found} of {total}", f"behaviours found\n{name_of(first)}", text + ".", detail)


def _missed(name: str, dictionary: Mapping[str, Any]) -> str:
    names = [
        row["behaviour"]
        for row in dictionary["truth"]
        if row["kind"] != "gain" and not row["found"]
    ]
    return f"{name_of(name)} misses {join(names) if names else 'none'}."


def _exclusives(results: _Results) -> Finding:
    parts, figures = [], []
    for name, d in results["dictionaries"].items():
        kept, total = d["latent_scaling_ft_only"]["exclusive"], d["counts"]["ft_only"]
        figures.append(f"{kept:,}")
        parts.append(f"{kept:,} of {name_of(name)}'s {plural(total, 'fine-tune-only latent')}")
    return Finding(
        " · ".join(figures),
        "exclusive\n" + _names(results["dictionaries"]),
        f"Latent Scaling confirms as exclusive {join(parts)}.",
        "No behaviour was planted in this pair, so there is no truth to compare with.",
    )


def _rivals(results: _Results) -> tuple[str, str] | None:
    """Returns the names of the top-k and of the L1 dictionary, if both are there."""
    names: dict[bool, str] = {}
    for name, d in results["dictionaries"].items():
        names.setdefault(d["activation"] == "relu", name)
    return (names[False], names[True]) if len(names) == 2 else None


def _counts(results: _Results) -> Finding | None:
    rivals = _rivals(results)
    if rivals is None:
        return None
    topk, l1 = (results["dictionaries"][name] for name in rivals)
    (few, many), (a, b) = (topk["counts"]["ft_only"], l1["counts"]["ft_only"]), map(name_of, rivals)
    equal, where = _l0(topk["l0"], l1["l0"], a, b)
    pair = f"{many:,} against {few:,}"
    if few == many == 0:
        text = f"Neither {a} nor {b} calls any latent fine-tune-only."
    elif few == 0:
        text = f"{b} calls {plural(many, 'latent')} fine-tune-only, {a} none."
    elif many <= few:
        text = f"{b} does not call more latents fine-tune-only than {a}: {pair}."
    elif many < 2 * few:
        text = f"{b} calls more latents fine-tune-only than {a}, but not twice as many: {pair}."
    else:
        text = f"{b} calls {many / few:.1f} times as many latents fine-tune-only as {a}: {pair}."
    expected = equal and many >= max(2 * few, 1)
    detail = f"{where} Fine-tune-only is a relative decoder norm of at least 0.9."
    caption = f"fine-tune-only\n{b} : {a}"
    return Finding(f"{many:,} : {few:,}", caption, text, detail, expected)


def _l0(topk: int | float | None, l1: int | float | None, a: str, b: str) -> tuple[bool, str]:
    if not topk or not l1:
        return False, "The L0 of a dictionary is zero or unknown: the counts do not compare."
    if max(topk, l1) <= (1 + _EQUAL_L0) * min(topk, l1):
        return True, f"Measured at equal L0 ({a} {topk:.1f}, {b} {l1:.1f} latents per token)."
    return False, (
        f"The two are not at equal L0 ({a} {topk:.1f}, {b} {l1:.1f} latents per token), "
        "so the counts do not compare as they stand."
    )


def _rejected(results: _Results) -> Finding | None:
    rivals = _rivals(results)
    if rivals is None:
        return None
    ordered = [rivals[1], rivals[0]]
    first = results["dictionaries"][ordered[0]]
    total, out = first["counts"]["ft_only"], rejected(first)
    if total == 0:
        return None
    most = 2 * out > total
    lead = "rejects most" if most else "does not reject most" if out else "rejects none"
    text = f"Latent Scaling {lead} of {name_of(ordered[0])}'s fine-tune-only latents: "
    text += f"{out:,} of {total:,}"
    other = results["dictionaries"][ordered[1]]
    text += f"; of {name_of(ordered[1])}'s, {rejected(other):,} of {other['counts']['ft_only']:,}."
    detail = " ".join(_verdicts(name, results["dictionaries"][name]) for name in ordered)
    caption = f"fine-tune-only rejected\n{name_of(ordered[0])}"
    return Finding(f"{out:,} of {total:,}", caption, text, detail, most)


def _verdicts(name: str, dictionary: Mapping[str, Any]) -> str:
    verdicts = dictionary["latent_scaling_ft_only"].items()
    parts = [f"{count:,} {verdict}" for verdict, count in verdicts if count]
    return f"{name_of(name)}: {join(parts) if parts else 'none'}."


def _gains(results: _Results) -> Finding | None:
    bar = results["config"]["diff"]["auroc"]
    counts = {name: mistaken_of(d, bar) for name, d in results["dictionaries"].items()}
    total = max((of for _, of in counts.values()), default=0)
    if total == 0:
        return None
    wrong = sum(taken for taken, _ in counts.values())
    parts = [f"{name_of(name)} takes {taken} for new" for name, (taken, _) in counts.items()]
    lead = f"Of {plural(total, 'concept')} that both models have, with changed gain, "
    return Finding(
        " · ".join(f"{taken}" for taken, _ in counts.values()),
        f"of {total} taken for new\n" + _names(results["dictionaries"]),
        lead + (f"{join(parts)}." if wrong else "none is taken for new."),
        "It would be, if the latent that separates its tokens best were exclusive.",
        wrong == 0,
    )


def _names(dictionaries: Mapping[str, Any]) -> str:
    return " · ".join(map(name_of, dictionaries))


def _null(results: _Results) -> Finding | None:
    if not results["null"]:
        return None
    figures, parts, clean = [], [], True
    for name, d in results["null"].items():
        count, kept = d["counts"]["ft_only"], d["latent_scaling_ft_only"]["exclusive"]
        real = results["dictionaries"].get(name)
        limit = max(1.0, _NULL_PART * (real["counts"]["ft_only"] if real else 0))
        clean = clean and count <= limit
        figures.append(f"{count:,}")
        parts.append(f"{name_of(name)} calls {count:,} fine-tune-only ({kept:,} exclusive)")
    state = "next to nothing is found" if clean else "something is found all the same"
    return Finding(
        " · ".join(figures),
        "fine-tune-only, null pair\n" + _names(results["null"]),
        f"On the null pair, where there is nothing to find, {state}: {join(parts)}.",
        "The same pipeline on two models that do not differ in what they do: what it calls "
        "fine-tune-only there is the method's own noise.",
        clean,
    )
