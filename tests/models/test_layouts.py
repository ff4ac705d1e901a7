"""Files that keep parameters otherwise than jaxdiff: joined, transposed, one tensor an expert."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh
from jaxdiff.models import (
    _weights,
    load,
    load_report,
    load_spec,
    parameters,
    save,
    stack,
    unstack,
)

FOLDERS = ("gpt2", "gpt_neox_parallel", "phi3_longrope", "qwen3_moe", "gemma3_text")


@pytest.fixture(params=FOLDERS)
def folder(request, golden):
    return golden / request.param


@pytest.fixture
def copy(golden, tmp_path):
    """Copies a golden folder, with changes of its config and of its tensors."""

    def make(name, config=None, tensors=None):
        shutil.copytree(golden / name, tmp_path / "copy", dirs_exist_ok=True)
        files = tmp_path / "copy" / "config.json", tmp_path / "copy" / "model.safetensors"
        if config is not None:
            files[0].write_text(json.dumps(config(json.loads(files[0].read_text()))))
        if tensors is not None:
            save_file(tensors(load_file(files[1])), files[1], metadata={"format": "pt"})
        return tmp_path / "copy"

    return make


def _equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.shape == y.shape and (x == y).all(), a, b))


def _tensors(folder):
    return {
        name: t.astype(np.float32) for name, t in load_file(folder / "model.safetensors").items()
    }


def test_gpt2_is_transposed_and_joined(golden):
    file = _tensors(golden / "gpt2")
    blocks = load(golden / "gpt2").params["blocks"]
    for i in range(2):
        joined, bias = file[f"h.{i}.attn.c_attn.weight"], file[f"h.{i}.attn.c_attn.bias"]
        for j, name in enumerate("qkv"):
            at = slice(16 * j, 16 * (j + 1))
            np.testing.assert_array_equal(blocks["attn"][name]["weight"][i], joined[:, at].T)
            np.testing.assert_array_equal(blocks["attn"][name]["bias"][i], bias[at])
        down = file[f"h.{i}.mlp.c_proj.weight"]
        assert down.shape == (24, 16)
        np.testing.assert_array_equal(blocks["mlp"]["down"]["weight"][i], down.T)


def test_neox_alternates_by_head(golden):
    file = _tensors(golden / "gpt_neox_parallel")
    blocks = load(golden / "gpt_neox_parallel").params["blocks"]
    for i in range(2):
        for kind in ("weight", "bias"):
            joined = file[f"gpt_neox.layers.{i}.attention.query_key_value.{kind}"]
            apart = joined.reshape(2, 3, 8, *joined.shape[1:])
            for j, name in enumerate("qkv"):
                expected = apart[:, j].reshape(16, *joined.shape[1:])
                np.testing.assert_array_equal(blocks["attn"][name][kind][i], expected)


def test_phi3_is_joined(golden):
    file = _tensors(golden / "phi3_longrope")
    blocks = load(golden / "phi3_longrope").params["blocks"]
    for i in range(2):
        at = f"model.layers.{i}."
        q, k, v = np.split(file[f"{at}self_attn.qkv_proj.weight"], [32, 48])
        gate, up = np.split(file[f"{at}mlp.gate_up_proj.weight"], 2)
        for group, name, expected in (
            ("attn", "q", q),
            ("attn", "k", k),
            ("attn", "v", v),
            ("mlp", "gate", gate),
            ("mlp", "up", up),
        ):
            np.testing.assert_array_equal(blocks[group][name]["weight"][i], expected)


def test_experts_are_stacked(golden):
    file = _tensors(golden / "qwen3_moe")
    mlp = load(golden / "qwen3_moe").params["blocks"]["mlp"]
    for i in range(2):
        at = f"model.layers.{i}.mlp."
        np.testing.assert_array_equal(mlp["router"]["weight"][i], file[f"{at}gate.weight"])
        for e in range(5):
            for name in ("gate", "up", "down"):
                expected = file[f"{at}experts.{e}.{name}_proj.weight"]
                np.testing.assert_array_equal(mlp[name]["weight"][i, e], expected)


def test_save_inverts_load(folder, tmp_path):
    """Both layouts, to the bit, without what a load ignores and with the prefix."""
    lm, report = load(folder, dtype="bfloat16"), load_report(folder)
    prefix = "transformer." if folder.name == "gpt2" else ""
    before = load_file(folder / "model.safetensors")
    for model in (lm, unstack(lm)):
        save(model, tmp_path)
        after = load_file(tmp_path / "model.safetensors")
        assert after.keys() == {prefix + name for name in report.consumed}
        assert all((after[prefix + name] == before[name]).all() for name in report.consumed)
        assert load_spec(tmp_path) == lm.spec


def test_one_tree_a_layer(folder):
    lm, apart = load(folder), load(folder, stacked=False)
    assert isinstance(apart.params["blocks"], tuple)
    assert _equal(apart.params, unstack(lm).params)
    assert _equal(stack(apart).params, lm.params)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("latent", [2, 8])
def test_each_device_reads_only_its_part(folder, monkeypatch, latent, stacked):
    """Counts the numbers that are read: as many as parameters, and no large matrix whole."""
    counts = []
    original = _weights.opened

    class Counted:
        def __init__(self, lazy):
            self.lazy = lazy

        def __getattr__(self, name):
            return getattr(self.lazy, name)

        def __getitem__(self, index):
            part = self.lazy[index]
            counts.append(part.size)
            return part

    @contextlib.contextmanager
    def counted(files):
        with original(files) as tensors:
            yield {name: Counted(lazy) for name, lazy in tensors.items()}

    plain = load(folder, stacked=stacked)
    monkeypatch.setattr(_weights, "opened", counted)
    sharded = load(folder, stacked=stacked, mesh=make_mesh(data=8 // latent, latent=latent))
    assert _equal(sharded.params, plain.params)
    assert sum(counts) == parameters(plain)
    flat = _weights.flatten(sharded.params)
    for path, leaf in flat.items():
        whole = path.endswith("bias") or "norm" in path or "router" in path
        assert leaf.size // leaf.addressable_shards[0].data.size == (1 if whole else latent), path
    largest = max(leaf.addressable_shards[0].data.size for leaf in flat.values())
    assert max(counts) <= largest


def test_a_report_of_every_tensor(golden):
    report = load_report(golden / "gpt2")
    assert report.problems == () and len(report.consumed) == 28
    assert report.ignored == {f"h.{i}.attn.bias": "causal masks" for i in range(2)}
    assert report.consumed["h.1.attn.c_attn.weight"] == tuple(
        f"blocks.attn.{name}.weight" for name in "qkv"
    )
    assert str(report) == "28 tensors read, 2 ignored (2 causal masks)"
    tensors = load_file(golden / "gpt2" / "model.safetensors")
    assert tensors.keys() == report.consumed.keys() | report.ignored.keys()
    neox = load_report(golden / "gpt_neox_parallel")
    assert sorted(set(neox.ignored.values())) == [
        "causal masks",
        "rotary frequencies, which follow from the config",
    ]
    assert len(neox.ignored) == 6


def test_a_load_logs_its_report(golden, caplog):
    with caplog.at_level("INFO", logger="jaxdiff.models"):
        load(golden / "gpt2")
    assert caplog.messages == [f"{golden / 'gpt2'}: 28 tensors read, 2 ignored (2 causal masks)"]


def test_all_that_is_wrong_is_reported_at_once(copy):
    def change(tensors):
        del tensors["h.0.attn.c_attn.weight"]
        tensors["h.1.attn.c_attn.bias"] = tensors["h.1.attn.c_attn.bias"][:-1]
        tensors["transformer.wte.weight"] = tensors["wte.weight"]
        return tensors | {"h.0.attn.extra": np.zeros(1, np.float32)}

    folder = copy("gpt2", tensors=change)
    report = load_report(folder)
    assert report.problems == (
        "missing: transformer.h.0.attn.c_attn.weight [16, 48]",
        "unknown: h.0.attn.extra",
        "shape: h.1.attn.c_attn.bias is [47], the config says [48]",
        "twice: wte.weight is also there as transformer.wte.weight",
    )
    with pytest.raises(JaxdiffError) as error:
        load(folder)
    assert "4 tensors do not fit" in error.value.what
    assert all(problem in error.value.what for problem in report.problems)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_model_that_reads_images(golden, copy, prefix):
    def nest(config):
        text = {name: value for name, value in config.items() if name != "architectures"}
        return {"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106]}

    def rename(tensors):
        named = {prefix + name.removeprefix("model."): t for name, t in tensors.items()}
        return named | {"vision_tower.patches.weight": np.zeros((3, 3), np.float32)}

    folder = copy("gemma3_text", nest, rename)
    lm, text = load(folder), load(golden / "gemma3_text")
    assert _equal(lm.params, text.params)
    assert lm.spec.architecture == "gemma3_text" and lm.spec.eos == (1, 106)
    reasons = {"vision_tower.patches.weight": "weights of the part that reads images"}
    assert load_report(folder).ignored == reasons


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers=[1] is not supported"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2 is not supported"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma3_text", {"attn_logit_softcapping": 2.0}, "attn_logit_softcapping=2.0"),
        ("gemma3_text", {"sliding_window": None}, "sliding_window=None is not supported"),
        ("phi3_longrope", {"num_attention_heads": 5}, "not valid"),
    ],
)
def test_configs_that_cannot_be_used(copy, name, changes, message):
    folder = copy(name, lambda config: config | changes)
    with pytest.raises(JaxdiffError) as error:
        load_spec(folder)
    assert message in error.value.what and error.value.fix
    assert str(folder) in error.value.where
