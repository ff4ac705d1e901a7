"""`jaxdiff dictionary import`, `export` and `formats`."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdiff import cli
from jaxdiff.dictionaries import (
    FORMATS,
    encode,
    import_dictionary,
    load,
    load_normalization,
    save,
)


def test_there_and_back(golden, tmp_path, capsys):
    source, own, out = golden / "sparsify", tmp_path / "own", tmp_path / "out"
    assert cli.main(["dictionary", "import", str(source), str(own)]) == 0
    assert capsys.readouterr().out == f"{own}: topk, 7 latents, 1 x 4, code norm none\n"
    expected = load_file(source / "expected.safetensors")
    x = jnp.asarray(expected["x"])[:, None]
    np.testing.assert_allclose(encode(load(own), x), expected["latents"], atol=1e-5)
    assert cli.main(["dictionary", "export", str(own), str(out), "--format", "saelens"]) == 0
    again = import_dictionary(out).dictionary
    np.testing.assert_allclose(encode(again, x), expected["latents"], atol=1e-5)


def test_the_normalisation_goes_along(golden, tmp_path):
    tensors = load_file(golden / "saelens_standard" / "sae_weights.safetensors")
    settings = {"architecture": "standard", "normalize_activations": "expected_average_only_in"}
    (tmp_path / "cfg.json").write_text(json.dumps(settings))
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.125}')
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    own, out = tmp_path / "own", tmp_path / "out"
    assert cli.main(["dictionary", "import", str(tmp_path), str(own), "--format", "saelens"]) == 0
    np.testing.assert_array_equal(load_normalization(own).scale, [0.125])
    words = ["dictionary", "export", str(own), str(out), "--format", "gemma_scope"]
    assert cli.main(words) == 0
    exported = import_dictionary(out).dictionary
    np.testing.assert_allclose(exported.W_enc, 0.125 * tensors["W_enc"][None], rtol=1e-6)


def test_a_dictionary_without_a_record_is_not_normalised(golden, tmp_path):
    save(import_dictionary(golden / "saelens_topk").dictionary, tmp_path)
    found = load_normalization(tmp_path)
    assert found.mean.shape == (1, 4) and not found.mean.any() and found.scale == 1


def test_formats_are_listed(capsys):
    assert cli.main(["dictionary", "formats"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(FORMATS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "nowhere", "{out}"], "no such file or folder"),
        (["import", "{golden}/sparsify", "{out}", "--format", "gguf"], "no format 'gguf'"),
        (["import", "{golden}/sparsify", "{taken}"], "this folder has a dictionary"),
        (["export", "{out}", "{out}", "--format", "saelens"], "cannot be read"),
        (["formats", "more"], "unknown words more"),
    ],
)
def test_bad_words(golden, tmp_path, capsys, words, message):
    places = {"golden": golden, "out": tmp_path / "out", "taken": tmp_path / "taken"}
    save(import_dictionary(golden / "sparsify").dictionary, places["taken"])
    assert cli.main(["dictionary", *(word.format(**places) for word in words)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out
    assert not places["out"].exists()
