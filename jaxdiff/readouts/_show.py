"""Readings as pictures: one HTML file without scripts, which notebooks show too."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxdiff.errors import JaxdiffError
from jaxdiff.readouts._parts import Parts
from jaxdiff.readouts._reading import Reading
from jaxdiff.types import HostOrDevice

Decode = Callable[[list[int]], str]
"""Makes text of token ids, as the `decode` of a tokenizer does."""

_STYLE = """
body{font:13px system-ui,sans-serif;margin:1em;color:#1a1a1a;background:#fff}
div{overflow-x:auto}
table{border-collapse:separate;border-spacing:1px}
th{font-weight:500;color:#555;padding:2px 6px;text-align:right;white-space:pre}
thead th,tfoot th{text-align:center;max-width:9em;overflow:hidden;text-overflow:ellipsis}
td{padding:2px 6px;text-align:center;white-space:pre;max-width:9em;overflow:hidden;
text-overflow:ellipsis}
caption{text-align:left;color:#555;padding-bottom:6px}
""".replace("\n", "")


@dataclass(frozen=True)
class Picture:
    """A page; notebooks show it, and `save` writes it.

    Attributes:
        page: The whole page.
    """

    page: str

    def save(self, path: str | Path) -> Path:
        """Writes the page and returns where it is."""
        path = Path(path)
        path.write_text(self.page, encoding="utf-8", errors="replace")
        return path

    def _repr_html_(self) -> str:
        page = html.escape(self.page, quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:32em;border:0"></iframe>'


def show(
    found: Reading | Parts,
    *,
    decode: Decode | None = None,
    tokens: Sequence[int] | HostOrDevice | None = None,
    row: int = 0,
    title: str = "",
) -> Picture:
    """Draws a reading or an attribution as a table of colours, layers or parts by positions.

        lens = logit_lens(lm, ids)
        show(lens, decode=tokenizer.decode, tokens=ids[0]).save("lens.html")

    A reading's cells have the likeliest token, the stronger the likelier, later layers above; its
    rivals appear under the pointer. An attribution's cells have what a part adds, blue for and red
    against.

    Args:
        found: A `Reading` with axes of layers, rows and, if there are several, positions, as
            `logit_lens` and `patchscope` return it; or `Parts` of `direct_logit_attribution`.
        decode: Makes text of token ids; ids are shown when None.
        tokens: Token ids of the positions, for the heads of the columns.
        row: Row of the batch that is drawn.
        title: What is written above.

    Returns:
        The page.

    Raises:
        JaxdiffError: If there are no layers and rows to draw, or no such row.
    """
    values = found.probabilities[..., 0] if isinstance(found, Reading) else found.values
    if np.ndim(values) not in (2, 3):
        raise JaxdiffError(
            f"this has {np.ndim(values)} axes before tokens or parts",
            where="show",
            fix="give layers or parts, rows, and positions at most",
        )
    if not 0 <= row < values.shape[1]:
        raise JaxdiffError(f"there is no row {row} in {values.shape[1]}", where="show: row")
    cells = np.asarray(values[:, row], np.float32)
    cells = cells[:, None] if cells.ndim == 1 else cells
    if isinstance(found, Reading):
        names, body = _of_reading(found, cells, row, _decoder(decode))
    else:
        names, body = list(found.names), _of_parts(cells)
    head = (
        [""] * cells.shape[1]
        if tokens is None
        else [_decoder(decode)(t) for t in np.asarray(tokens).tolist()]
    )
    if len(head) != cells.shape[1]:
        raise JaxdiffError(
            f"{len(head)} tokens for {cells.shape[1]} positions",
            where="show: tokens",
            fix="give those of the positions that were read",
        )
    return Picture(_page(title, head, names, body))


def _of_reading(
    found: Reading, cells: np.ndarray, row: int, decode: Callable[[int], str]
) -> tuple[list[str], list[list[str]]]:
    tokens = np.asarray(found.tokens[:, row]).reshape(*cells.shape, -1).tolist()
    chances = np.asarray(found.probabilities[:, row]).reshape(*cells.shape, -1).tolist()

    def cell(ids: list[int], chance: list[float]) -> str:
        rivals = "\n".join(f"{decode(i)}  {p:.3f}" for i, p in zip(ids, chance, strict=True))
        colour = f"rgb(31 119 180/{chance[0] * 0.85 if np.isfinite(chance[0]) else 0:.2f})"
        return _cell(decode(ids[0]), rivals, colour, light=chance[0] > 0.6)

    order = range(len(cells) - 1, -1, -1)
    body = [[cell(*pair) for pair in zip(tokens[i], chances[i], strict=True)] for i in order]
    return [str(i) for i in order], body


def _of_parts(cells: np.ndarray) -> list[list[str]]:
    finite = np.abs(cells[np.isfinite(cells)])
    largest = float(np.max(finite, initial=0.0)) or 1.0

    def cell(value: float) -> str:
        share = abs(value) / largest if np.isfinite(value) else 0.0
        colour = f"rgb({'31 119 180' if value > 0 else '214 39 40'}/{0.85 * share:.2f})"
        return _cell(f"{value:+.2f}", f"{value:+.5g}", colour, light=share > 0.7)

    return [[cell(float(value)) for value in line] for line in cells]


def _cell(text: str, tip: str, colour: str, *, light: bool) -> str:
    ink = ";color:#fff" if light else ""
    tip = html.escape(tip, quote=True)
    return f'<td title="{tip}" style="background:{colour}{ink}">{html.escape(text)}</td>'


def _page(title: str, head: list[str], names: list[str], body: list[list[str]]) -> str:
    columns = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    lines = "\n".join(
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(cells)}</tr>'
        for name, cells in zip(names, body, strict=True)
    )
    heads = f"<thead><tr><th></th>{columns}</tr></thead>" if any(head) else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title or 'jaxdiff')}</title><style>{_STYLE}</style></head><body><div>"
        f"<table><caption>{html.escape(title)}</caption>{heads}<tbody>\n{lines}\n</tbody></table>"
        "</div></body></html>\n"
    )


def _decoder(decode: Decode | None) -> Callable[[int], str]:
    """Returns what makes text of one token, in which whitespace can be seen."""

    def text(token: int) -> str:
        if decode is None:
            return str(token)
        found = decode([token])
        return found.replace("\n", "\u21b5").replace("\t", "\u21e5") or "\u2205"

    return text
