"""The short table at the end of a run in the terminal."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxdiff.report.findings import found_of, mistaken_of, rejected
from jaxdiff.report.schema import check
from jaxdiff.report.words import name_of

_Dictionary = Mapping[str, Any]


def summary(results: dict[str, Any]) -> Table:
    """Returns the main numbers of a comparison as a table to print with rich.

    Args:
        results: Contents of results.json.

    Returns:
        Table with a column for each dictionary of the pair, then of the null pair.

    Raises:
        JaxdiffError: If a part of the results is missing.
    """
    check(results)
    columns = [(name_of(name), d) for name, d in results["dictionaries"].items()]
    columns += [(f"null {name_of(name)}", d) for name, d in (results["null"] or {}).items()]
    pair = results["pair"]
    table = Table(
        title=f"{pair['base']} → {pair['ft']} at {results['site']}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for title, _ in columns:
        table.add_column(title, justify="right")
    for label, cell in _ROWS.items():
        table.add_row(label, *(cell(d) for _, d in columns))
    if results["behaviours"]:
        bar = results["config"]["diff"]["auroc"]
        table.add_row("behaviours found", *(_found(d) for _, d in columns))
        taken = (_part(*mistaken_of(d, bar)) for _, d in columns)
        table.add_row("gains taken for new", *taken)
    return table


def _number(value: int | float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _l0(d: _Dictionary) -> str:
    return f"{_number(d['l0'], 1)} / {_number(d['k'], 1)}"


def _fve(d: _Dictionary) -> str:
    return f"{_number(d['fve']['base'], 2)} / {_number(d['fve']['ft'], 2)}"


def _alive(d: _Dictionary) -> str:
    return f"{d['alive']:,} / {d['latents']:,}"


def _confirmed(d: _Dictionary) -> str:
    return f"{d['latent_scaling_ft_only']['exclusive']:,}"


def _undecided(d: _Dictionary) -> str:
    return f"{d['latent_scaling_ft_only']['undecided']:,}"


def _found(d: _Dictionary) -> str:
    return _part(*found_of(d))


def _part(count: int, total: int) -> str:
    return f"{count} of {total}" if total else "–"


_ROWS: dict[str, Callable[[_Dictionary], str]] = {
    "L0 on test / k": _l0,
    "FVE base / ft": _fve,
    "alive / latents": _alive,
    "shared": lambda d: f"{d['counts']['shared']:,}",
    "base-only": lambda d: f"{d['counts']['base_only']:,}",
    "other": lambda d: f"{d['counts']['other']:,}",
    "fine-tune-only": lambda d: f"{d['counts']['ft_only']:,}",
    "  confirmed exclusive": _confirmed,
    "  rejected": lambda d: f"{rejected(d):,}",
    "  undecided": _undecided,
}
