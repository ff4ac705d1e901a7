"""Files with each format's exact keys: the latents are those of the format's own encoder."""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.dictionaries import FORMATS, decode, encode, export_dictionary, import_dictionary
from jaxdiff.dictionaries.formats import _torch_zip
from jaxdiff.errors import JaxdiffError

# The cases name the tests, before there are fixtures.
_spec = importlib.util.spec_from_file_location("peers", Path(__file__).parent / "peers.py")
_peers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_peers)
CASES = [(format, name) for format, cases in _peers.CASES.items() for name in cases]

LOCAL = ("l1_old", "batch_topk_local")


def save_ours(path, tensors):
    """Writes a .pt file without torch."""
    path.write_bytes(_torch_zip.write(path, tensors))


def save_torch(path, tensors):
    """Writes a .pt file with torch."""
    import torch

    arrays = (np.ndarray, np.generic)
    torch.save(
        {
            n: torch.from_numpy(np.array(v)) if isinstance(v, arrays) else v
            for n, v in tensors.items()
        },
        path,
    )


def check(found, case):
    """Compares a dictionary's latents and reconstructions with the peer's."""
    latents = encode(found.dictionary, found.normalization.apply(jnp.asarray(case.x)))
    np.testing.assert_allclose(latents, case.latents, atol=1e-5, rtol=1e-5)
    decoded = found.normalization.invert(decode(found.dictionary, latents))
    np.testing.assert_allclose(decoded, case.decoded, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize(("format", "name"), CASES)
def test_latents_and_reconstructions(tmp_path, format, name):
    case = _peers.CASES[format][name]()
    assert 0.1 < np.mean(case.latents > 0) < 0.9, "a rule that keeps all or nothing tests nothing"
    case.write(tmp_path, save_ours)
    check(import_dictionary(tmp_path), case)
    check(import_dictionary(tmp_path, format), case)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("format", "name"),
    [c for c in CASES if c[0] in ("kissane", "crosscode", "openai") or c[1].endswith(LOCAL)],
)
def test_files_of_torch(tmp_path, format, name):
    pytest.importorskip("torch")
    case = _peers.CASES[format][name]()
    assert any(file.endswith(".pt") for file in case.files)
    case.write(tmp_path, save_torch)
    check(import_dictionary(tmp_path), case)


@pytest.mark.parametrize(("format", "name"), CASES)
def test_written_and_read_again(tmp_path, format, name):
    case = _peers.CASES[format][name]()
    case.write(tmp_path / "theirs", save_ours)
    found = import_dictionary(tmp_path / "theirs")
    if name in ("crosscoder_jumprelu", "jumprelu_by_norm"):
        # Other thresholds for other models, or latents: read, but no place to write them.
        with pytest.raises(JaxdiffError, match="no place for"):
            export_dictionary(found.dictionary, tmp_path / "ours", format, found.normalization)
        return
    export_dictionary(found.dictionary, tmp_path / "ours", format, found.normalization)
    check(import_dictionary(tmp_path / "ours"), case)


@pytest.mark.parametrize(("format", "name"), CASES)
def test_a_folder_may_be_named_by_a_file(tmp_path, format, name):
    case = _peers.CASES[format][name]()
    case.write(tmp_path, save_ours)
    for file in case.files:
        if format != "openai" and "/" not in file:
            check(import_dictionary(tmp_path / file), case)


def test_checkpoints_of_scripts_are_told_by_their_neighbours(tmp_path):
    case = _peers.kissane(("3_cfg.json", "3.pt"))
    case.write(tmp_path, save_ours)
    check(import_dictionary(tmp_path / "3.pt"), case)
    case = _peers.openai()
    (other,) = case.files.values()
    save_ours(tmp_path / "4.pt", other)
    check(import_dictionary(tmp_path / "4.pt"), case)
    case = _peers.crosscoder(code=2, local=True)
    save_ours(tmp_path / "checkpoint_40000.pt", case.files["model_final.pt"])
    check(import_dictionary(tmp_path / "checkpoint_40000.pt"), case)


def test_every_format_has_a_case(golden):
    tested = set(_peers.CASES) | {p.name for p in golden.iterdir() if p.is_dir()}
    assert all(any(name.startswith(format) for name in tested) for format in FORMATS)
