"""What the command line says where several processes cannot find each other."""

import pytest

from jaxdiff import cli


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--coordinator", "localhost:1"], "--processes, --process are missing"),
        (["--processes", "2", "--process", "0"], "--coordinator is missing"),
        (["--distributed"], "this process cannot join the others"),
    ],
)
def test_processes_that_cannot_join(capsys, monkeypatch, words, message):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    assert cli.main(["train", "quickstart", *words]) == 2
    assert message in capsys.readouterr().err
