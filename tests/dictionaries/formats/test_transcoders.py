"""Transcoders, skips and groups of other tools, by each tool's own forward pass in float64."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdiff.dictionaries import (
    decode,
    encode,
    export_dictionary,
    import_dictionary,
    read_by,
)
from jaxdiff.errors import JaxdiffError

D, L, K = 4, 9, 3


def _drawn(**shapes):
    rng = np.random.default_rng(0)
    return {n: rng.normal(0, 0.7, shape).astype(np.float32) for n, shape in shapes.items()}


def sparsify(folder, kind="topk", transcode=True, skip=True):
    """Writes its files; returns what SparseCoder.encode and forward make of x."""
    t = _drawn(**{"encoder.weight": (L, D), "encoder.bias": (L,), "W_dec": (L, D), "b_dec": (D,)})
    t |= _drawn(W_skip=(D, D)) if skip else {}
    settings = {"activation": kind, "k": K, "num_latents": L, "d_in": D, "signed": False}
    settings |= {"transcode": transcode, "skip_connection": skip, "normalize_decoder": True}
    save_file(t, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings))

    def forward(x):
        z = x if transcode else x - t["b_dec"]
        f = np.maximum(z @ t["encoder.weight"].T + t["encoder.bias"], 0)
        if kind == "topk":
            f = np.where(f >= np.sort(f, axis=1)[:, -K, None], f, 0)
        else:
            parts = f.reshape(len(f), K, -1)
            f = np.where(parts == parts.max(axis=-1, keepdims=True), parts, 0).reshape(f.shape)
        return f, f @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if skip else 0)

    return forward


def gemma_scope_2(folder, skip=True):
    """Writes its files; returns what a loader makes of x."""
    t = _drawn(w_enc=(D, L), w_dec=(L, D), b_enc=(L,), b_dec=(D,))
    t["threshold"] = np.linspace(0.1, 0.9, L, dtype=np.float32)
    t |= _drawn(affine_skip_connection=(D, D)) if skip else {}
    sites = {"hf_hook_point_in": "layers.1.input", "hf_hook_point_out": "layers.1.output"}
    save_file(t, folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu"} | sites))

    def forward(x):
        pre = x @ t["w_enc"] + t["b_enc"]
        f = np.maximum(pre, 0) * (pre > t["threshold"])
        return f, f @ t["w_dec"] + t["b_dec"] + (x @ t["affine_skip_connection"] if skip else 0)

    return forward


def saelens(folder, kind="jumprelu_skip_transcoder"):
    """Writes its files; returns what Transcoder.forward makes of x."""
    t = _drawn(W_enc=(D, L), W_dec=(L, D), b_enc=(L,), b_dec=(D,))
    t |= _drawn(W_skip=(D, D)) if "skip" in kind else {}
    if "jumprelu" in kind:
        t["threshold"] = np.linspace(0.1, 0.9, L, dtype=np.float32)
    settings = {"architecture": kind, "d_in": D, "d_out": D, "d_sae": L, "metadata": {}}
    settings |= {"apply_b_dec_to_input": False, "normalize_activations": "none"}
    save_file(t, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings))

    def forward(x):
        pre = x @ t["W_enc"] + t["b_enc"]
        f = np.maximum(pre, 0) * (pre > t.get("threshold", 0))
        return f, f @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if "skip" in kind else 0)

    return forward


CASES = [
    (sparsify, {}),
    (sparsify, {"skip": False}),
    (sparsify, {"kind": "groupmax"}),
    (sparsify, {"kind": "groupmax", "transcode": False, "skip": False}),
    (sparsify, {"transcode": False}),
    (gemma_scope_2, {}),
    (gemma_scope_2, {"skip": False}),
    (saelens, {}),
    (saelens, {"kind": "jumprelu_transcoder"}),
    (saelens, {"kind": "skip_transcoder"}),
    (saelens, {"kind": "transcoder"}),
]


def check(folder, forward):
    x = np.random.default_rng(1).normal(0, 1.2, (24, 2, D)).astype(np.float32)
    found = import_dictionary(folder)
    d = found.dictionary
    sides = ((0,), (1,)) if d.sources == 2 else (None, None)
    assert (d.reads, d.writes) == sides
    read = read_by(d, jnp.asarray(found.normalization.apply(x[:, : d.sources])))
    latents, decoded = forward(x[:, 0].astype(np.float64))
    assert 0.1 < np.mean(latents > 0) < 0.9
    f = encode(d, read)
    np.testing.assert_allclose(f, latents, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(decode(d, f, read)[:, 0], decoded, atol=3e-5, rtol=1e-5)
    return found


@pytest.mark.parametrize(("write", "settings"), CASES)
def test_read_and_written_again(tmp_path, write, settings):
    (tmp_path / "a").mkdir()
    forward = write(tmp_path / "a", **settings)
    found = check(tmp_path / "a", forward)
    assert (found.dictionary.sources == 2) == settings.get("transcode", True)
    export_dictionary(*(found.dictionary, tmp_path / "b", write.__name__), found.normalization)
    check(tmp_path / "b", forward)
    names = {p.name: load_file(p) for p in (tmp_path / "a").glob("*.safetensors")}
    for name, tensors in names.items():
        again = load_file(tmp_path / "b" / name)
        assert {n: a.shape for n, a in tensors.items()} == {n: a.shape for n, a in again.items()}


@pytest.mark.parametrize("format", ["gemma_scope", "kissane", "dictionary_learning", "openai"])
def test_formats_that_have_no_place_for_them(tmp_path, format):
    (tmp_path / "a").mkdir()
    sparsify(tmp_path / "a", kind="groupmax")
    d = import_dictionary(tmp_path / "a").dictionary
    with pytest.raises(JaxdiffError, match=f"group_max and skip and transcoder.* in {format}"):
        export_dictionary(d, tmp_path / "b", format)
