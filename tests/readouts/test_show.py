import re
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import readouts
from jaxdiff.errors import JaxdiffError

WORDS = ["a", " b", "<i>", "&", '"', "\n"]


def decode(ids):
    return "".join(WORDS[i] for i in ids)


class _Cells(HTMLParser):
    """Rows of a page as (text, tip, background) a cell; fails where tags do not nest."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.open, self.texts = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag == "meta":
            return
        self.open.append(tag)
        attrs = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(["", attrs.get("title"), attrs.get("style", "")])

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1][0] += data

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def reading():
    logits = np.random.default_rng(0).normal(0, 2, (3, 2, 4, 6)).astype(np.float32)
    return readouts.Reader(k=3)(jnp.asarray(logits)), logits


def test_a_reading_shows_the_likeliest_tokens_last_layer_on_top(reading):
    found, logits = reading
    picture = readouts.show(found, decode=decode, tokens=[2, 0, 3, 5], row=1, title="a < b")
    rows = _Cells(picture.page).rows
    assert [cell[0] for cell in rows[0]] == ["", "<i>", "a", "&", "\u21b5"]
    assert [row[0][0] for row in rows[1:]] == ["2", "1", "0"]
    for layer, row in zip((2, 1, 0), rows[1:], strict=True):
        for position, (text, tip, style) in enumerate(row[1:]):
            order = np.argsort(-logits[layer, 1, position])
            shown = [WORDS[i].replace("\n", "\u21b5") for i in order]
            assert text == shown[0]
            rivals = [line.rsplit("  ", 1)[0] for line in tip.split("\n")]
            assert rivals == shown[:3]
            alpha = float(re.search(r"/([\d.]+)\)", style)[1])
            chance = float(found.probabilities[layer, 1, position, 0])
            assert alpha == pytest.approx(0.85 * chance, abs=0.01)
    assert "<script" not in picture.page and "http" not in picture.page
    assert "<title>a &lt; b</title>" in picture.page


def test_without_a_decoder_ids_are_shown_and_one_position_is_one_column(reading):
    found, logits = reading
    one = readouts.Reader(k=2)(jnp.asarray(logits[:, :, -1]))
    rows = _Cells(readouts.show(one).page).rows
    assert [[cell[0] for cell in row[1:]] for row in rows] == [
        [str(np.argmax(logits[layer, 0, -1]))] for layer in (2, 1, 0)
    ]


def test_parts_are_shown_with_their_sign():
    parts = readouts.Parts(jnp.asarray([[[1.0, -2.0]], [[0.0, jnp.nan]]]), ("embed", "mlp"))
    rows = _Cells(readouts.show(parts).page).rows
    assert [[cell[0] for cell in row] for row in rows] == [
        ["embed", "+1.00", "-2.00"],
        ["mlp", "+0.00", "+nan"],
    ]
    assert "31 119 180/0.42" in rows[0][1][2] and "214 39 40/0.85" in rows[0][2][2]
    assert "/0.00" in rows[1][2][2]


def test_it_is_saved_and_shown_in_notebooks(reading, tmp_path):
    picture = readouts.show(reading[0])
    path = picture.save(tmp_path / "lens.html")
    assert path.read_text(encoding="utf-8") == picture.page
    assert picture._repr_html_().startswith("<iframe srcdoc=")


def test_what_cannot_be_drawn_is_refused(reading):
    found, logits = reading
    with pytest.raises(JaxdiffError, match="no row 2"):
        readouts.show(found, row=2)
    with pytest.raises(JaxdiffError, match="3 tokens for 4 positions"):
        readouts.show(found, tokens=[1, 2, 3])
    with pytest.raises(JaxdiffError, match="4 axes"):
        readouts.show(readouts.Reader(k=1)(jnp.asarray(logits[None])))
