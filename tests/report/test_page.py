"""The page as a file: what it holds, that it needs nothing else, that no text becomes markup."""

import base64
import copy
import hashlib
import html.parser
import json
import re

import pytest

from jaxdiff.errors import JaxdiffError
from jaxdiff.report import write


class _Page(html.parser.HTMLParser):
    """Collects elements, the text outside of scripts, and what each script holds."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.text, self._inside = [], [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
            if tag == "script":
                self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self._inside = None if tag == self._inside else self._inside

    def handle_data(self, data):
        if self._inside == "script":
            attributes, held = self.scripts[-1]
            self.scripts[-1] = (attributes, held + data)
        elif self._inside is None:
            self.text += data

    def embedded(self, name):
        return next(
            json.loads(held) for attributes, held in self.scripts if attributes.get("id") == name
        )


@pytest.fixture
def parse(tmp_path):
    def render(results):
        return _Page(write(results, tmp_path / "report").read_text(encoding="utf-8"))

    return render


def test_write_returns_the_path_of_one_file(results, tmp_path):
    path = write(results, tmp_path / "a" / "report")
    assert path == tmp_path / "a" / "report" / "index.html"
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    assert write(results, path.parent) == path


def test_embedded_data_equals_the_results(results, parse):
    assert parse(results).embedded("results") == results


def test_nothing_is_loaded_from_anywhere(results, parse, tmp_path):
    page = parse(results)
    loading = {"src", "srcset", "data", "action", "poster", "background", "ping"}
    for tag, attributes in page.elements:
        assert not loading & attributes.keys(), (tag, attributes)
        if tag == "link":
            assert attributes["href"].startswith("data:")
    assert {tag for tag, _ in page.elements}.isdisjoint(
        {"img", "iframe", "object", "embed", "base"}
    )
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", text, re.S).group(1)
    assert "url(" not in style and "@import" not in style
    script = page.scripts[-1][1]
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|sendBeacon|WebSocket|innerHTML", script)


def test_policy_admits_the_one_script(results, parse):
    page = parse(results)
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv"))
    attributes, script = page.scripts[-1]
    assert attributes == {}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_no_text_becomes_markup(results, parse):
    evil = "</script><script>alert(1)</script><b x='\"&amp;{{ 7*7 }}"
    results["site"] = results["pair"]["base"] = results["created"] = evil
    results["behaviours"][0]["description"] = evil
    results["provenance"]["devices"] = results["provenance"]["models"]["base"]["path"] = evil
    results["provenance"]["versions"] = {evil: evil}
    results["provenance"]["stages"] = {evil: {"fingerprint": evil, "seconds": None}}
    results["config"]["note"] = evil
    results["dictionaries"][evil] = copy.deepcopy(results["dictionaries"]["l1"])
    results["roles"] = [evil, *results["roles"][1:]]
    page = parse(results)
    assert len(page.scripts) == 3
    assert page.text.count(evil) >= 9
    assert page.embedded("results") == results
    assert not any("x" in attributes for _, attributes in page.elements)


def test_half_a_surrogate_pair_is_no_obstacle(results, parse):
    results["behaviours"][0]["name"] = "half \ud83d"
    assert parse(results).embedded("results") == results


def test_tables_show_the_numbers(results, parse):
    d = results["dictionaries"]["batch_topk"]
    d["l0"], d["fve"]["base"], d["counts"]["shared"] = 12.345, 0.87654, 123456
    results["provenance"]["models"]["ft"]["changes"] = ["untie", "fold_norms"]
    text = parse(results).text
    for shown in (
        "12.35",
        "0.8765",
        "123,456",
        "9e1f00aa12bc34de",
        "1 min 15 s",
        "962,110",
        "changed: untie, fold_norms",
    ):
        assert shown in text
    for row in d["truth"]:
        assert row["behaviour"] in text


def test_truth_links_to_its_latents(results, parse):
    links = {a.get("href") for t, a in parse(results).elements if t == "a"}
    for name, d in results["dictionaries"].items():
        for row in d["truth"]:
            if row["latent"] is not None:
                assert f"#{name}/{row['latent']}" in links


@pytest.mark.parametrize(
    "changes",
    [
        {"null": None, "null_pair": None},
        {"behaviours": []},
        {"data": {}, "behaviours": [], "null": None, "null_pair": None, "dictionaries": {}},
    ],
    ids=["no null", "no behaviours", "nothing"],
)
def test_missing_parts_are_called_none(results, parse, changes):
    results |= changes
    for d in results["dictionaries"].values():
        d["truth"] = d["truth"] if results["behaviours"] else []
    page = parse(results)
    if not results["behaviours"]:
        assert "no behaviour was planted" in page.text
    if not results["dictionaries"]:
        assert "the results hold no dictionary" in page.text
    assert page.embedded("results") == results


def test_one_dictionary_without_latents(make_results, parse):
    results = make_results(latents=0)
    del results["dictionaries"]["l1"], results["null"]["l1"]
    page = parse(results)
    assert "None" not in page.text.replace("None:", "").replace("None of", "")


@pytest.mark.parametrize(
    "path",
    [
        ("dictionaries",),
        ("null",),
        ("provenance", "models", "base", "fingerprint"),
        ("config", "diff", "nu_error"),
        ("dictionaries", "l1", "fve", "ft"),
        ("dictionaries", "l1", "latent_scaling_ft_only", "shrunk"),
        ("null", "batch_topk", "table", 3, "class"),
        ("dictionaries", "batch_topk", "truth", 0, "found"),
    ],
)
def test_a_missing_key_is_named(results, tmp_path, path):
    *outer, last = path
    holder = results
    for key in outer:
        holder = holder[key]
    del holder[last]
    with pytest.raises(JaxdiffError, match=re.escape(".".join(map(str, path)) + " is missing")):
        write(results, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_kind_is_named(results, tmp_path):
    results["dictionaries"]["l1"]["alive"] = "many"
    with pytest.raises(JaxdiffError, match=r"dictionaries\.l1\.alive: "):
        write(results, tmp_path)


def test_a_number_that_is_not_finite_is_named(results, tmp_path):
    results["dictionaries"]["l1"]["table"][2]["cosine"] = float("nan")
    with pytest.raises(JaxdiffError, match=r"not finite: dictionaries\.l1\.table\.2\.cosine"):
        write(results, tmp_path)
