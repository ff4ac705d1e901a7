"""What cannot be read or written is named, all at once and before anything is computed."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdiff.dictionaries import FORMATS, Dictionary, export_dictionary, import_dictionary
from jaxdiff.dictionaries.formats import _torch_zip
from jaxdiff.errors import JaxdiffError


def _settings(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def copied(golden, tmp_path):
    """Copies a golden folder, to be damaged."""

    def copy(case):
        for path in (golden / case).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        return tmp_path

    return copy


def test_all_faults_of_the_tensors_at_once(copied):
    folder = copied("saelens_jumprelu")
    tensors = load_file(folder / "sae_weights.safetensors")
    del tensors["b_enc"], tensors["b_dec"]
    tensors["W_dec"] = tensors["W_dec"][:-1]
    tensors["threshold"] = tensors["threshold"][None]
    save_file(tensors | {"b_gate": tensors["W_enc"]}, folder / "sae_weights.safetensors")
    with pytest.raises(JaxdiffError) as error:
        import_dictionary(folder)
    for fault in (
        "b_enc is missing",
        "b_dec is missing",
        "b_gate is not known",
        "W_dec has L = 6, but W_enc has L = 7",
        "threshold has shape (1, 7) instead of [L]",
    ):
        assert fault in str(error.value)
    assert "sae_weights.safetensors" in str(error.value)


def test_a_language_model_is_not_listed_in_full(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    tensors = {f"model.layers.{i}.weight": np.zeros(1, np.float32) for i in range(99)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(JaxdiffError, match=re.escape("... and 73 more")):
        import_dictionary(tmp_path)


def test_nothing_known_lists_the_formats(tmp_path):
    (tmp_path / "readme.txt").write_text("no dictionary")
    with pytest.raises(JaxdiffError) as error:
        import_dictionary(tmp_path)
    assert all(name in str(error.value) for name in FORMATS)
    with pytest.raises(JaxdiffError, match="no such file or folder"):
        import_dictionary(tmp_path / "nowhere")


def test_a_format_that_does_not_exist(tmp_path):
    with pytest.raises(JaxdiffError, match="no format 'sealens'") as error:
        import_dictionary(tmp_path, "sealens")
    assert "saelens " in str(error.value) and "llama_scope" in str(error.value)
    with pytest.raises(JaxdiffError, match="no format 'onnx'"):
        export_dictionary(_dictionary("relu"), tmp_path, "onnx")


def test_another_format_than_the_files_have(golden):
    with pytest.raises(JaxdiffError, match="sae.safetensors"):
        import_dictionary(golden / "saelens_standard", "sparsify")


@pytest.mark.parametrize(
    ("case", "name", "changes", "message"),
    [
        ("saelens_standard", "cfg.json", {"architecture": "temporal"}, "'temporal'"),
        ("saelens_standard", "cfg.json", {"normalize_activations": "layer_norm"}, "layer_norm"),
        (
            "saelens_standard",
            "cfg.json",
            {"normalize_activations": "constant_norm_rescale"},
            "constant_norm_rescale",
        ),
        ("sparsify", "cfg.json", {"skip_connection": True}, "W_skip is missing"),
        ("sparsify", "cfg.json", {"activation": "jumprelu"}, "the activation jumprelu"),
        ("sparsify", "cfg.json", {"signed": True}, "the activation signed topk"),
        (
            "dictionary_learning_AutoEncoder",
            "config.json",
            {"trainer": {"dict_class": "IdentityDict"}},
            "IdentityDict",
        ),
        ("dictionary_learning_AutoEncoder", "config.json", {"trainer": {}}, "no dict_class"),
        ("dictionary_learning_AutoEncoder", "config.json", {"trainer": 3}, "settings are not"),
        ("sparsify", "cfg.json", {"k": 0}, "from 1 to the 7 latents, not 0"),
        ("sparsify", "cfg.json", {"k": "two"}, "settings are not those of sparsify"),
        ("saelens_topk", "cfg.json", {"k": None}, "from 1 to the 7 latents, not None"),
    ],
)
def test_settings_with_no_place(copied, case, name, changes, message):
    folder = copied(case)
    _settings(folder, name, **changes)
    with pytest.raises(JaxdiffError, match=message):
        import_dictionary(folder)


def _save(path, **tensors):
    arrays = {
        n: np.asarray(v, np.float32) if not isinstance(v, str) else v for n, v in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt":
        path.write_bytes(_torch_zip.write(path, arrays))
    else:
        save_file(arrays, path)


SQUARE = {"w_enc": np.eye(3), "w_dec": np.eye(3), "b_enc": [0] * 3, "b_dec": [0] * 3}
SQUARE["threshold"] = [0] * 3


def test_transcoders_over_layers_of_gemma_scope_2(tmp_path):
    _save(tmp_path / "b" / "params_layer_0.safetensors", **SQUARE)
    sites = {"hf_hook_point_in": "layers.1.input", "hf_hook_point_out": "layers.1.output"}
    (tmp_path / "b" / "config.json").write_text(json.dumps(sites))
    with pytest.raises(JaxdiffError, match="from layers.1.input to layers.1.output"):
        import_dictionary(tmp_path / "b")
    _save(tmp_path / "clt" / "params_layer_0.safetensors", **SQUARE)
    with pytest.raises(JaxdiffError, match="transcoder"):
        import_dictionary(tmp_path / "clt")
    # Of a crosscoder's files, the last one was not downloaded.
    wide = SQUARE | {"w_dec": np.zeros((3, 2, 3))}
    _save(tmp_path / "c" / "params_layer_0.safetensors", **wide)
    with pytest.raises(JaxdiffError, match=r"write \(2, 3\) in a crosscoder of \(1, 3\)"):
        import_dictionary(tmp_path / "c")


def test_topk_of_openai_normalises_tokens(tmp_path):
    tensors = {"encoder.weight": np.eye(3), "decoder.weight": np.eye(3)}
    biases = {"latent_bias": np.zeros(3), "pre_bias": np.zeros(3)}
    _save(tmp_path / "x.pt", **tensors, **biases, activation="TopK")
    with pytest.raises(JaxdiffError, match="normalises every token"):
        import_dictionary(tmp_path / "x.pt")


def test_a_decoupled_crosscoder_that_normalises(tmp_path):
    """The fork normalises its rows twice, then; read plainly, latents would not be its own."""
    tensors = {"encoder.weight": np.zeros((2, 3, 4)), "encoder.bias": np.zeros(4)}
    tensors |= {"decoder.weight": np.zeros((2, 4, 3)), "decoder.bias": np.zeros((2, 3))}
    tensors |= {"k": 2, "threshold": [0, 0], "code_normalization_id": 5, "target_rms": 1}
    norms = {"activation_mean": np.ones((2, 3)), "activation_std": np.ones((2, 3))}
    norms["activation_global_scale"] = np.ones(2)
    _save(tmp_path / "model_final.pt", **tensors, **norms)
    with pytest.raises(JaxdiffError, match="does it twice"):
        import_dictionary(tmp_path)
    _save(tmp_path / "model_final.pt", **tensors | {"code_normalization_id": 7, "threshold": 0})
    with pytest.raises(JaxdiffError, match="code normalisation 7"):
        import_dictionary(tmp_path)


def test_damaged_files(copied, tmp_path):
    folder = copied("saelens_standard")
    whole = (folder / "sae_weights.safetensors").read_bytes()
    (folder / "sae_weights.safetensors").write_bytes(whole[:-4])
    with pytest.raises(JaxdiffError, match="cannot be read"):
        import_dictionary(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(JaxdiffError, match="settings cannot be read"):
        import_dictionary(folder)
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "params.npz").write_bytes(b"PK")
    with pytest.raises(JaxdiffError, match="cannot be read"):
        import_dictionary(tmp_path / "n")
    # An array of objects would be unpickled.
    np.savez(tmp_path / "n" / "params.npz", W_enc=np.array([{}], object))
    with pytest.raises(JaxdiffError, match="cannot be read"):
        import_dictionary(tmp_path / "n")


def _dictionary(activation, models=1, code_norm="none"):
    size = {"jumprelu": (5,), "batch_topk": ()}.get(activation, ())
    return Dictionary(
        W_enc=jnp.ones((models, 3, 5)),
        b_enc=jnp.zeros(5),
        W_dec=jnp.ones((5, models, 3)),
        b_dec=jnp.zeros((models, 3)),
        threshold=jnp.arange(int(np.prod(size)), dtype=jnp.float32).reshape(size),
        activation=activation,
        k=2.0,
        code_norm=code_norm,
    )


@pytest.mark.parametrize(
    ("format", "d", "message"),
    [
        ("saelens", _dictionary("relu", 2), "crosscoder over 2 models in SAELens"),
        ("sparsify", _dictionary("relu"), "a relu dictionary in sparsify"),
        ("gemma_scope", _dictionary("topk"), "topk dictionary in Gemma Scope"),
        ("gemma_scope_2", _dictionary("relu", 2), "reads several layers"),
        ("kissane", _dictionary("batch_topk", 2), "batch_topk dictionary in this format"),
        ("crosscode", _dictionary("topk", 2, "sae"), "sae topk dictionary in this format"),
        ("science_of_finetuning", _dictionary("jumprelu", 2), "a jumprelu dictionary"),
        ("llama_scope", _dictionary("jumprelu"), "a threshold of each latent"),
        ("llamascopium", _dictionary("batch_topk", 2), "none batch_topk crosscoder"),
        ("openai", _dictionary("topk"), "a topk dictionary in OpenAI's"),
        ("dictionary_learning", _dictionary("topk", 2), "crosscoder over 2 models"),
    ],
)
def test_dictionaries_with_no_place(tmp_path, format, d, message):
    with pytest.raises(JaxdiffError, match=message):
        export_dictionary(d, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()
