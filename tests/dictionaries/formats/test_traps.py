"""What importers get wrong: each trap in a file where the wrong reading would pass unnoticed."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdiff.dictionaries import (
    Dictionary,
    decode,
    encode,
    export_dictionary,
    import_dictionary,
    ranking_keys,
)
from jaxdiff.dictionaries.formats import _torch_zip

# As many latents as the model is wide: a transposed matrix has the right shape.
SIZE, K = 5, 2


@pytest.fixture
def sae():
    rng = np.random.default_rng(0)
    tensors = {"W_enc": rng.normal(size=(SIZE, SIZE)), "W_dec": rng.normal(size=(SIZE, SIZE))}
    tensors |= {"b_enc": rng.normal(size=SIZE), "b_dec": rng.normal(size=SIZE)}
    return {name: value.astype(np.float32) for name, value in tensors.items()}


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(30, SIZE)).astype(np.float32)


def _saelens(folder, tensors, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps({"metadata": {}, **settings}))
    save_file(tensors, folder / "sae_weights.safetensors")
    return import_dictionary(folder)


def _latents(found, x):
    return np.asarray(encode(found.dictionary, found.normalization.apply(jnp.asarray(x[:, None]))))


def _decoded(found, latents):
    decoded = decode(found.dictionary, jnp.asarray(latents, jnp.float32))
    return np.asarray(found.normalization.invert(decoded))[:, 0]


def _close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_the_bias_before_the_encoder_is_a_setting(tmp_path, sae, x):
    shift = {True: sae["b_dec"], False: 0.0}
    for centred in (True, False):
        settings = {"architecture": "standard", "apply_b_dec_to_input": centred}
        found = _saelens(tmp_path, sae, **settings)
        pre = (x - shift[centred]) @ sae["W_enc"] + sae["b_enc"]
        _close(_latents(found, x), np.maximum(pre, 0))
        # The decoder's own bias stays, whatever the encoder does with it.
        _close(found.dictionary.b_dec[0], sae["b_dec"])
    # Before there was a setting, it was subtracted.
    old = _saelens(tmp_path, sae, architecture="standard")
    _close(_latents(old, x), np.maximum((x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"], 0))


def test_sparsify_always_subtracts_the_bias(tmp_path, sae, x):
    # SAELens' reader of these files looks at normalize_decoder instead, and transposes W_dec.
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    save_file({name: sae[own] for name, own in names.items()}, tmp_path / "sae.safetensors")
    for normalize in (True, False):
        settings = {"d_in": SIZE, "k": SIZE, "normalize_decoder": normalize, "num_latents": SIZE}
        (tmp_path / "cfg.json").write_text(json.dumps(settings))
        found = import_dictionary(tmp_path)
        latents = np.maximum((x - sae["b_dec"]) @ sae["W_enc"].T + sae["b_enc"], 0)
        _close(_latents(found, x), latents)
        _close(_decoded(found, latents), latents @ sae["W_dec"] + sae["b_dec"])


def test_orientation_is_that_of_the_format(tmp_path, sae, x):
    """nn.Linear has [out, in]; W_enc of SAELens is [in, out]; a crosscoder's W_dec differs too."""
    found = _saelens(tmp_path / "s", sae, architecture="standard", apply_b_dec_to_input=False)
    _close(_latents(found, x), np.maximum(x @ sae["W_enc"] + sae["b_enc"], 0))
    linear = {"encoder.weight": sae["W_enc"], "encoder.bias": sae["b_enc"]}
    linear |= {"decoder.weight": sae["W_dec"], "decoder.bias": sae["b_dec"]}
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "ae.pt").write_bytes(_torch_zip.write(tmp_path / "ae.pt", linear))
    settings = {"trainer": {"dict_class": "AutoEncoderNew"}}
    (tmp_path / "d" / "config.json").write_text(json.dumps(settings))
    found, latents = import_dictionary(tmp_path / "d"), x @ sae["W_enc"].T + sae["b_enc"]
    _close(_latents(found, x), np.maximum(latents, 0))
    _close(_decoded(found, latents), latents @ sae["W_dec"].T + sae["b_dec"])


def test_decoder_norms_are_folded_when_latents_are_rescaled(tmp_path, sae, x):
    settings = {"architecture": "topk", "k": K, "apply_b_dec_to_input": False}
    found = _saelens(tmp_path, sae, **settings, rescale_acts_by_decoder_norm=True)
    norms = np.linalg.norm(sae["W_dec"], axis=1)
    keys = np.maximum(x @ sae["W_enc"] + sae["b_enc"], 0) * norms
    kept = np.where(keys >= np.sort(keys)[:, -K, None], keys, 0)
    _close(_latents(found, x), kept)
    _close(_decoded(found, kept), kept / norms @ sae["W_dec"] + sae["b_dec"])
    plain = _saelens(tmp_path, sae, **settings, rescale_acts_by_decoder_norm=False)
    assert np.any((_latents(plain, x) > 0) != (kept > 0)), "the norms must matter to this test"


def test_the_scale_of_activations_counts(tmp_path, sae, x):
    scaler = tmp_path / "activation_scaler.json"
    scaler.write_text(json.dumps({"scaling_factor": 0.25}))
    settings = {"architecture": "standard", "apply_b_dec_to_input": True}
    found = _saelens(tmp_path, sae, **settings, normalize_activations="expected_average_only_in")
    latents = np.maximum((0.25 * x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"], 0)
    _close(_latents(found, x), latents)
    _close(_decoded(found, latents), (latents @ sae["W_dec"] + sae["b_dec"]) / 0.25)
    # Without a setting, a file left over beside the weights says nothing.
    assert _saelens(tmp_path, sae, **settings).normalization.scale == 1
    # Where the format has no place for the scale, it is folded into the weights.
    export_dictionary(found.dictionary, tmp_path / "out", "openai", found.normalization)
    _close(_latents(import_dictionary(tmp_path / "out"), x), latents)


def _crosscoder(folder, threshold, code):
    rng = np.random.default_rng(3)
    shapes = {"encoder.weight": (2, 4, 6), "encoder.bias": (6,)}
    shapes |= {"decoder.weight": (2, 6, 4), "decoder.bias": (2, 4)}
    tensors = {n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
    tensors |= {"k": np.int32(2), "threshold": np.float32(threshold)}
    tensors["code_normalization_id"] = np.int64(code)
    save_file({n: np.asarray(v) for n, v in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return import_dictionary(folder), tensors


def test_the_threshold_is_on_scaled_values_and_values_are_not_scaled(tmp_path):
    found, t = _crosscoder(tmp_path, 3.0, 1)
    x = np.random.default_rng(4).normal(size=(40, 2, 4)).astype(np.float32)
    f = np.einsum("bmd,mdl->bl", x, t["encoder.weight"]) + t["encoder.bias"]
    norms = np.linalg.norm(t["decoder.weight"], axis=2).sum(axis=0)
    expected = np.where(np.maximum(f, 0) * norms > 3.0, f, 0)
    latents = np.asarray(encode(found.dictionary, jnp.asarray(x)))
    _close(latents, expected)
    assert np.any((f > 3.0) != (latents > 0)), "the norms must matter to this test"
    # The dictionary keeps the convention, and so do the files that are written from it.
    assert found.dictionary.activation == "batch_topk" and found.dictionary.threshold == 3.0
    export_dictionary(found.dictionary, tmp_path / "own", "science_of_finetuning")
    assert import_dictionary(tmp_path / "own").dictionary.threshold == 3.0
    # In a format with thresholds of values, each latent gets its own.
    export_dictionary(found.dictionary, tmp_path / "values", "crosscode")
    again = import_dictionary(tmp_path / "values").dictionary
    _close(again.threshold, 3.0 / norms)
    _close(encode(again, jnp.asarray(x)), expected)


def test_a_threshold_that_was_never_set_lets_all_pass(tmp_path):
    found, _ = _crosscoder(tmp_path, -1.0, 2)
    x = np.random.default_rng(4).normal(size=(40, 2, 4)).astype(np.float32)
    active = np.asarray(encode(found.dictionary, jnp.asarray(x))) > 0
    assert 0.3 < active.mean() < 0.7


def test_layers_are_ordered_by_number(tmp_path):
    """By name, layer 10 would come before layer 2."""
    n = 11
    for i in range(n):
        tensors = {"w_enc": [[i + 1.0]], "b_enc": [0.0], "b_dec": [0.0], "threshold": [0.0]}
        tensors["w_dec"] = np.zeros((1, n, 1))
        arrays = {name: np.asarray(v, np.float32) for name, v in tensors.items()}
        save_file(arrays, tmp_path / f"params_layer_{i}.safetensors")
    found = import_dictionary(tmp_path).dictionary
    np.testing.assert_array_equal(found.W_enc[:, 0], np.diag(np.arange(1.0, n + 1)))


@pytest.mark.parametrize("format", ["crosscode", "llamascopium"])
def test_batch_topk_without_a_threshold_says_so(tmp_path, format, capfd):
    """These two have it for training only: the k largest of whatever batch there is."""
    d = Dictionary(
        *(jnp.ones((1, 3, 4)), jnp.zeros(4), jnp.ones((4, 1, 3)), jnp.zeros((1, 3))),
        threshold=jnp.zeros(()),
        activation="topk",
        k=2.0,
        code_norm="none",
    )
    export_dictionary(d, tmp_path, format)
    name = {"crosscode": "model_cfg.yaml", "llamascopium": "config.json"}[format]
    text = (tmp_path / name).read_text()
    text = text.replace("TopkActivation", "BatchTopkActivation").replace('"topk"', '"batchtopk"')
    (tmp_path / name).write_text(text)
    found = import_dictionary(tmp_path).dictionary
    said = " ".join("".join(capfd.readouterr()).split())
    assert "no threshold" in said
    assert (found.activation, found.k, float(found.threshold)) == ("batch_topk", 2.0, 0.0)


RULES = ("saelens", "gemma_scope", "gemma_scope_2", "dictionary_learning", "llamascopium")


@pytest.mark.parametrize("format", RULES)
def test_a_latent_at_its_threshold_is_off(tmp_path, format):
    """All of these compare with >, not >=."""
    d = Dictionary(
        W_enc=jnp.eye(3)[None],
        b_enc=jnp.zeros(3),
        W_dec=jnp.eye(3)[:, None],
        b_dec=jnp.zeros((1, 3)),
        threshold=jnp.array([1.0, 0.0, 1.0]),
        activation="jumprelu",
        k=0.0,
        code_norm="none",
    )
    export_dictionary(d, tmp_path, format)
    x = np.array([[1.0, 0.0, np.nextafter(np.float32(1), 2)]], np.float32)
    np.testing.assert_array_equal(_latents(import_dictionary(tmp_path), x)[0] > 0, [0, 0, 1])


@pytest.mark.parametrize("bits", [np.int16, np.uint16, np.dtype("V2")])
def test_bfloat16_under_another_name(tmp_path, bits):
    """NumPy files have no bfloat16: it is stored as 16-bit integers, or as pairs of bytes."""
    rng = np.random.default_rng(5)
    shapes = {"W_enc": (4, 6), "W_dec": (6, 4), "b_enc": (6,), "b_dec": (4,), "threshold": (6,)}
    tensors = {n: rng.normal(size=s).astype(ml_dtypes.bfloat16) for n, s in shapes.items()}
    np.savez(tmp_path / "params.npz", **{n: v.view(bits) for n, v in tensors.items()})
    found = import_dictionary(tmp_path).dictionary
    np.testing.assert_array_equal(found.W_enc[0], tensors["W_enc"].astype(np.float32))
    np.testing.assert_array_equal(found.threshold, tensors["threshold"].astype(np.float32))


def test_bfloat16_in_safetensors(tmp_path, sae, x):
    low = {name: value.astype(ml_dtypes.bfloat16) for name, value in sae.items()}
    found = _saelens(tmp_path, low, architecture="standard", apply_b_dec_to_input=False)
    W_enc, b_enc = (low[name].astype(np.float32) for name in ("W_enc", "b_enc"))
    _close(_latents(found, x), np.maximum(x @ W_enc + b_enc, 0))


def test_rows_of_an_embedding_are_scaled(tmp_path):
    """Gemma Scope's SAEs of the embedding read the table, not the site after its factor."""
    rng = np.random.default_rng(6)
    shapes = {"W_enc": (4, 6), "W_dec": (6, 4), "b_enc": (6,), "b_dec": (4,), "threshold": (6,)}
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    folder = tmp_path / "embedding" / "width_4k"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **tensors)
    table = rng.normal(size=(20, 4)).astype(np.float32)
    pre = table @ tensors["W_enc"] + tensors["b_enc"]
    expected = np.maximum(pre, 0) * (pre > tensors["threshold"])
    _close(_latents(import_dictionary(folder), table * 2.0), expected)


def test_the_threshold_of_llama_scope_is_for_unscaled_activations(tmp_path):
    settings = {"d_model": 4, "act_fn": "jumprelu", "jump_relu_threshold": 0.5}
    settings |= {"dataset_average_activation_norm": {"in": 0.5, "out": 0.5}}
    (tmp_path / "hyperparams.json").write_text(json.dumps(settings))
    names = {"encoder.weight": np.eye(4), "encoder.bias": np.zeros(4), "decoder.weight": np.eye(4)}
    tensors = {n: v.astype(np.float32) for n, v in names.items()}
    (tmp_path / "checkpoints").mkdir()
    save_file(tensors, tmp_path / "checkpoints" / "final.safetensors")
    found = import_dictionary(tmp_path)
    # sqrt(4) / 0.5 = 4: values are scaled, and raw ones of 0.5 are where they become active.
    x = np.array([[0.4, 0.6, 0.0, 0.0]], np.float32)
    _close(_latents(found, x), [[0.0, 2.4, 0.0, 0.0]])


def test_norms_that_are_folded_for_a_format_leave_the_choice(tmp_path):
    """Formats with decoders of norm 1 rank by values; ours ranks by value times norm."""
    rng = np.random.default_rng(7)
    leaves = (rng.normal(size=s) for s in ((1, 4, 9), (9,), (9, 1, 4), (1, 4)))
    W_enc, b_enc, W_dec, b_dec = (jnp.asarray(a.astype(np.float32)) for a in leaves)
    W_dec = W_dec.at[3].set(0.0)
    rule = {"threshold": jnp.zeros(()), "activation": "topk", "k": 2.0, "code_norm": "sae"}
    d = Dictionary(W_enc, b_enc, W_dec, b_dec, **rule)
    x = jnp.asarray(rng.normal(size=(30, 1, 4)).astype(np.float32))
    f = encode(d, x)
    export_dictionary(d, tmp_path, "sparsify")
    found = import_dictionary(tmp_path).dictionary
    norms = jnp.linalg.norm(W_dec[:, 0], axis=-1)
    _close(encode(found, x), ranking_keys(f, norms))
    _close(decode(found, encode(found, x)), decode(d, f))
