"""The terminal's table has the numbers of the results."""

import re

import pytest
from rich.console import Console

from jaxdiff.errors import JaxdiffError
from jaxdiff.report import summary


def _lines(results):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(summary(results))
    cells = [re.split(r"\s{2,}", line.strip()) for line in console.export_text().splitlines()]
    return {row[0]: row[1:] for row in cells}


def test_rows(results):
    d = results["dictionaries"]["batch_topk"]
    d["counts"]["ft_only"], d["l0"], d["k"] = 4321, 12.34, 12.0
    lines = _lines(results)
    assert lines["fine-tune-only"][0] == "4,321"
    assert lines["L0 on test / k"][0] == "12.3 / 12.0"
    found = sum(row["found"] for row in d["truth"])
    assert lines["behaviours found"][0] == f"{found} of 8"
    assert len(lines["shared"]) == 4


def test_without_null_and_truth(results):
    results |= {"null": None, "null_pair": None, "behaviours": []}
    lines = _lines(results)
    assert len(lines["shared"]) == 2
    assert "behaviours found" not in lines


def test_missing_key(results):
    del results["dictionaries"]["l1"]["counts"]
    with pytest.raises(JaxdiffError, match=r"dictionaries\.l1\.counts is missing"):
        summary(results)
