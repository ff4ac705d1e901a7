"""The page: one HTML file with its style, its script and all of its numbers inside."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from jaxdiff.errors import JaxdiffError
from jaxdiff.manifest import write_atomically
from jaxdiff.report import words
from jaxdiff.report.findings import findings, found_of, mistaken
from jaxdiff.report.schema import check

FILE = "index.html"
# One script in six files; later ones use what earlier ones define.
_SCRIPTS = ("core.js", "charts.js", "scatter.js", "table.js", "latent.js", "app.js")


def write(results: dict[str, Any], folder: Path) -> Path:
    """Writes the report of a comparison as one file that needs no network.

    Args:
        results: Contents of results.json; the page holds all of it and shows nothing else.
        folder: Where `index.html` goes; made if it is not there.

    Returns:
        Path of the page.

    Raises:
        JaxdiffError: If a part of the results is missing, or a number is not finite.
    """
    check(results)
    html = _render(results)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    # Half of a surrogate pair may stand in a name; UTF-8 has no bytes for it.
    write_atomically(path, html.encode("utf-8", errors="replace"))
    return path


def _render(results: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxdiff.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": _fixed,
        "count": _count,
        "percent": _percent,
        "duration": _duration,
        "emphasise": _emphasise,
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    script = "\n".join(_source(environment, name) for name in _SCRIPTS)
    return environment.get_template("page.html.j2").render(
        r=results,
        findings=findings(results),
        truth=_truth(results),
        found_of=found_of,
        mistaken=mistaken,
        words=words,
        columns=_columns(results),
        style=markupsafe.Markup(_source(environment, "style.css")),
        script=markupsafe.Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(_framed(script)).digest()).decode(),
        results_json=_embed(results),
        words_json=_embed(words.as_json()),
    )


def _framed(script: str) -> bytes:
    """Returns the script as it stands between its tags in the page."""
    return f"\n{script}\n".encode()


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0].strip()


def _embed(value: Any) -> markupsafe.Markup:
    """Returns JSON that no HTML parser can take for markup, equal to `value` when parsed."""
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        raise JaxdiffError(
            f"the results hold a number that is not finite: {_not_finite(value)}",
            where="results.json",
            fix="write null for a number that is not defined",
        ) from None
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(text)


def _not_finite(value: Any, path: str = "") -> str | None:
    """Returns the key of the first number that is not finite."""
    if isinstance(value, float):
        return path if value != value or value in (float("inf"), float("-inf")) else None
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return None
    nested = (_not_finite(part, f"{path}.{key}" if path else str(key)) for key, part in items)
    return next((found for found in nested if found), None)


def _columns(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the dictionaries of both pairs in the order of the page's tables."""
    groups = (("", results["dictionaries"]), ("null/", results["null"] or {}))
    return [
        {"route": prefix + name, "name": words.name_of(name), "null": bool(prefix), "d": d}
        for prefix, group in groups
        for name, d in group.items()
    ]


def _truth(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Returns, by kind, one entry a planted behaviour with its row in each dictionary."""
    planted = {b["name"]: dict(b, rows={}) for b in results["behaviours"]}
    for name, d in results["dictionaries"].items():
        for row in d["truth"]:
            blank = {"name": row["behaviour"], "kind": row["kind"], "description": "", "rows": {}}
            planted.setdefault(row["behaviour"], blank)["rows"][name] = row
    kinds = dict.fromkeys(["new", "gain", *(b["kind"] for b in planted.values())])
    return {kind: [b for b in planted.values() if b["kind"] == kind] for kind in kinds}


def _fixed(value: int | float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def _count(value: int | float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _percent(value: int | float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _duration(seconds: int | float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _emphasise(text: str) -> markupsafe.Markup:
    """Returns the text with its numbers in bold."""
    numbers = re.compile(r"(?<![\w.&#;-])(\d[\d,]*(?:\.\d+)?)(?![\w-])")
    return markupsafe.Markup(numbers.sub(r"<b>\1</b>", str(markupsafe.escape(text))))
