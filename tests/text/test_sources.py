"""Corpora on disk and on the hub."""

import json
import pickle
import sys
import types

import pytest

from jaxdiff.config import SourceConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.text import count, fingerprint, open_source

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def read(config):
    """All documents of a source, without their names."""
    parts = open_source(config)
    rows = [part[i] for part in parts for i in range(len(part))]
    return [{k: v for k, v in row.items() if k != "name"} for row in rows]


def test_text_file_is_split_at_blank_lines(write):
    source = write("a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\n \t\n\nthree \n\n\xe2\x82\xac")
    want = ["one\ntwo", "three ", "\u20ac"]
    assert [row["text"] for row in read(source)] == want
    assert open_source(source)[0][1]["name"].endswith("a.txt, line 6")


def test_jsonl_rows(write):
    rows = [
        {"text": "plain", "labels": [1, 2], "other": 3},
        {"messages": CHAT},
        {"conversation": [{"role": "user", "content": "x", "id": 4}]},
        {"text": None},
        {"text": "both", "messages": CHAT},
    ]
    source = write("a.jsonl", "\n" + "\n\n".join(json.dumps(row) for row in rows))
    assert read(source) == [
        {"text": "plain", "labels": [1, 2]},
        {"messages": CHAT},
        {"messages": [{"role": "user", "content": "x"}]},
        {"text": ""},
        {"messages": CHAT},
    ]
    assert count([source]) == 5


def test_column_is_taken_as_named(write):
    rows = [{"body": "a", "text": "b"}, {"body": CHAT}]
    assert read(write("a.jsonl", rows, column="body")) == [{"text": "a"}, {"messages": CHAT}]
    tables = write("a.parquet", [{"body": "a", "text": "b"}], column="body")
    assert read(tables) == [{"text": "a"}]


def test_parquet_rows_across_row_groups(write):
    rows = [{"text": f"row {i}", "labels": [i], "n": i} for i in range(11)]
    source = write("a.parquet", rows)
    assert read(source) == [{"text": f"row {i}", "labels": [i]} for i in range(11)]
    assert open_source(source)[0][9]["name"].endswith("a.parquet, row 9")
    chats = write("b.parquet", [{"messages": CHAT}] * 3)
    assert read(chats) == [{"messages": CHAT}] * 3


def test_parquet_cache_stays_within_its_budget(write, monkeypatch):
    from jaxdiff.text import _parquet

    source = write("a.parquet", [{"text": "x" * 100} for _ in range(20)])
    (part,) = open_source(source)
    monkeypatch.setattr(_parquet, "CACHE", 1000)
    assert [part[i]["text"] for i in (0, 19, 7, 0, 12)] == ["x" * 100] * 5
    assert len(part._cache) == 2


def test_folder_is_all_its_files(write, tmp_path):
    write("d/b.jsonl", [{"text": "b"}])
    write("d/sub/a.txt", "a1\n\na2")
    write("d/sub/1.parquet", [{"text": f"p{i}"} for i in range(5)])
    write("d/sub/2.parquet", [{"text": f"q{i}"} for i in range(5)])
    write("d/empty.jsonl", [])
    write("d/README.md", "no corpus")
    rows = read(SourceConfig(path=str(tmp_path / "d")))
    want = ["b", "a1", "a2", *(f"p{i}" for i in range(5)), *(f"q{i}" for i in range(5))]
    assert [row["text"] for row in rows] == want
    parts = open_source(SourceConfig(path=str(tmp_path / "d")))
    assert parts[-1][7]["name"].endswith("2.parquet, row 2")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_sources_can_be_pickled(write, name):
    content = "one\n\ntwo" if name == "a.txt" else [{"text": "one"}, {"text": "two"}]
    (part,) = open_source(write(name, content))
    first = part[0]
    copy = pickle.loads(pickle.dumps(part))
    assert (len(copy), copy[0], copy[1]["text"]) == (2, first, "two")


def test_changed_file_is_read_anew(write):
    assert len(read(write("a.txt", "one"))) == 1
    assert len(read(write("a.txt", "one\n\ntwo\n\nthree"))) == 3


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"text": "x"', "not JSON"),
        ("[1]", "should be a JSON object, it is of type list"),
        ('{"body": "x"}', "no column is named .* or text; there are: body"),
        ('{"text": 3}', "'text' should be a string or a list of messages, it is of type int"),
        ('{"messages": ["x"]}', "needs role and content, this one is of type str"),
        (
            '{"messages": [{"from": "a", "value": "b"}]}',
            "needs role and content, this one has from, value",
        ),
        ('{"messages": [{"role": "user"}]}', "content of a message .* it is null"),
    ],
)
def test_bad_line_is_named(write, line, what):
    source = write("bad.jsonl", f'{{"text": "fine"}}\n\n{line}\n')
    with pytest.raises(JaxdiffError, match=what) as info:
        read(source)
    assert info.value.where.endswith("bad.jsonl, line 3")


def test_bytes_that_are_no_text(write):
    with pytest.raises(JaxdiffError, match="not UTF-8") as info:
        read(write("a.txt", b"fine\n\n\xff\xfe"))
    assert info.value.where.endswith("a.txt, line 3")


def test_bad_paths(write, tmp_path):
    with pytest.raises(JaxdiffError, match="no such file or folder"):
        open_source(SourceConfig(path=str(tmp_path / "missing.txt")))
    with pytest.raises(JaxdiffError, match=r"extension '.csv' is not known"):
        open_source(write("a.csv", "x"))
    write("d/a.csv", "x")
    with pytest.raises(JaxdiffError, match="folder holds no"):
        open_source(SourceConfig(path=str(tmp_path / "d")))
    with pytest.raises(JaxdiffError, match="no Parquet file"):
        open_source(write("a.parquet", "text"))
    with pytest.raises(JaxdiffError, match="no column 'body'; there are: text"):
        open_source(write("b.parquet", [{"text": "x"}], column="body"))


@pytest.mark.parametrize(("name", "content"), [("a.txt", "\n \n"), ("a.jsonl", "")])
def test_empty_corpus(write, name, content):
    with pytest.raises(JaxdiffError, match="corpus is empty") as info:
        open_source(write(name, content))
    assert info.value.where.endswith(name)


def test_fingerprint_is_of_names_and_contents(write, tmp_path):
    write("one/a.txt", "text")
    write("two/a.txt", "text")
    write("three/b.txt", "text")
    write("four/a.txt", "other")
    marks = [fingerprint([SourceConfig(path=str(tmp_path / d))]) for d in ("one", "two")]
    assert marks[0] == marks[1]
    assert len(marks[0]) == 16
    others = [fingerprint([SourceConfig(path=str(tmp_path / d))]) for d in ("three", "four")]
    assert len({marks[0], *others}) == 3
    write("two/a.txt", "changed")
    assert fingerprint([SourceConfig(path=str(tmp_path / "two"))]) != marks[0]


def test_missing_extras_are_named(write, monkeypatch):
    from jaxdiff.text import _hub

    source = write("a.parquet", [{"text": "x"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(JaxdiffError, match="needs pyarrow") as info:
        open_source(source)
    assert "jaxdiff[datasets]" in info.value.fix
    monkeypatch.setitem(sys.modules, "datasets", None)
    _hub._load.cache_clear()
    with pytest.raises(JaxdiffError, match="need the package `datasets`"):
        open_source(SourceConfig(path="hf:some/name"))


class Rows(list):
    """As much of a datasets.Dataset as is used."""

    _fingerprint = "0123456789abcdef"
    column_names = ["text", "url", "labels"]

    def select_columns(self, names):
        return Rows({name: row[name] for name in names} for row in self)


@pytest.fixture
def hub(monkeypatch):
    """The `datasets` package where it is not installed: one data set, with two configurations."""
    from jaxdiff.text import _hub

    rows = Rows({"text": f"row {i}", "url": "u", "labels": [i]} for i in range(4))

    def load_dataset(name, configuration=None, *, split):
        if (name, configuration, split) not in {
            ("some/name", None, "train"),
            ("some/name", "small", "test"),
        }:
            raise FileNotFoundError(f"{name} is not on the hub")
        return rows if split == "train" else Rows(rows[:2])

    stub = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", stub)
    _hub._load.cache_clear()
    yield
    _hub._load.cache_clear()


@pytest.mark.usefixtures("hub")
def test_hub_dataset_by_name_split_and_configuration():
    source = SourceConfig(path="hf:some/name")
    assert read(source) == [{"text": f"row {i}", "labels": [i]} for i in range(4)]
    assert open_source(source)[0][2]["name"] == "hf:some/name, row 2"
    assert count([SourceConfig(path="hf:some/name:small", split="test")]) == 2
    assert fingerprint([source]) == fingerprint([source])
    with pytest.raises(JaxdiffError, match="nobody/none is not on the hub"):
        open_source(SourceConfig(path="hf:nobody/none"))
    with pytest.raises(JaxdiffError, match="no column 'body'; there are: text, url, labels"):
        open_source(SourceConfig(path="hf:some/name", column="body"))


def test_real_dataset_on_disk(tmp_path):
    # Runs fully where the extra is installed; elsewhere the error must say that it is missing.
    try:
        import datasets
    except ImportError:
        with pytest.raises(JaxdiffError, match="need the package `datasets`"):
            open_source(SourceConfig(path=f"hf:{tmp_path}"))
        return
    made = datasets.Dataset.from_list([{"messages": CHAT, "id": i} for i in range(3)])
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": made}).save_to_disk(tmp_path / "dict")
    source = SourceConfig(path=f"hf:{tmp_path}/one")
    assert read(source) == [{"messages": CHAT}] * 3
    assert read(SourceConfig(path=f"hf:{tmp_path}/dict", split="test")) == [{"messages": CHAT}] * 3
    assert len(pickle.loads(pickle.dumps(open_source(source)[0]))) == 3
    assert len(fingerprint([source])) == 16
    with pytest.raises(JaxdiffError, match="cannot be loaded"):
        open_source(SourceConfig(path=f"hf:{tmp_path}/dict", split="train"))
