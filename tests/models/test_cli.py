"""`jaxdiff models` and `jaxdiff sites`."""

import json
import subprocess
import sys

import pytest

from jaxdiff import cli
from jaxdiff.models import load_spec, sites
from jaxdiff.models.registry import ARCHITECTURES


def test_models_lists_every_architecture_and_how_to_add_one(capsys):
    assert cli.main(["models"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(ARCHITECTURES)
    for line, family in zip(lines, ARCHITECTURES.values(), strict=True):
        assert family.hf_class in line and line.endswith(family.about)
    assert "registry.py" in last


def test_sites_of_a_config_alone(golden, tmp_path, capsys):
    config = golden / "qwen3_moe" / "config.json"
    (tmp_path / "config.json").write_text(config.read_text())
    assert cli.main(["sites", str(tmp_path)]) == 0
    lines = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == list(sites(load_spec(tmp_path)))
    shapes = {name: shape.strip() for name, shape in lines}
    assert shapes["blocks.1.attn.pattern"] == "[B, 4, T, S]"
    assert shapes["blocks.0.mlp.post"] == "[B, T, 2, 16]"
    assert shapes["logits"] == "[B, T, 29]"


def test_sites_that_match(golden, capsys):
    assert cli.main(["sites", str(golden / "gpt2"), "blocks.*.attn.q"]) == 0
    assert capsys.readouterr().out == "".join(f"blocks.{i}.attn.q  [B, T, 4, 4]\n" for i in (0, 1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sites", "no/such/model"], "neither a directory nor a hub name"),
        (["sites", "{golden}/gpt2", "blocks.7.*"], "no site matches 'blocks.7.*'"),
        (["sites", "{golden}/gpt2", "embed", "more"], "unknown words more"),
        (["models", "more"], "unknown words more"),
    ],
)
def test_what_cannot_be_listed(golden, capsys, words, message):
    assert cli.main([word.format(golden=golden) for word in words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out


def test_a_reader_that_has_seen_enough(golden, tmp_path):
    config = json.loads((golden / "llama_mha_tied_biases" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 500}))
    command = f"{sys.executable} -m jaxdiff.cli sites {tmp_path} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["embed", "[B,", "T,", "16]"] and not done.stderr
