import contextlib
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh
from jaxdiff.models import _weights as weights
from jaxdiff.models import load, load_spec, parameters, run, save
from jaxdiff.models._lm import abstract
from jaxdiff.models._mapping import sources
from jaxdiff.models.registry import ARCHITECTURES

META = {"format": "pt"}


@pytest.fixture
def folder(llama, tmp_path):
    save(llama, tmp_path)
    return tmp_path


def _rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata=META)


def _reconfigure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _equal(a, b):
    return jax.tree.all(
        jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b)
    )


def test_saved_models_load_bit_identical(lm, tmp_path):
    save(lm, tmp_path)
    again = load(tmp_path)
    assert load_spec(tmp_path) == again.spec == lm.spec and again.graphdef == lm.graphdef
    assert _equal(again.params, lm.params)
    files = load_file(tmp_path / "model.safetensors")
    assert sum(value.size for value in files.values()) == parameters(lm) == parameters(lm.spec)
    assert ("lm_head.weight" in files) == (not lm.spec.tied)


def test_token_ids_and_rope_survive(llama, tmp_path):
    rope = dataclasses.replace(
        llama.spec.rope, kind="llama3", factor=8.0, low_freq=1.0, high_freq=4.0, context=4096
    )
    spec = dataclasses.replace(llama.spec, bos=1, eos=(2, 3), pad=0, rope=rope, context=77)
    save(dataclasses.replace(llama, spec=spec), tmp_path)
    assert load(tmp_path).spec == spec


def test_dtypes_are_converted(llama, tmp_path):
    save(llama, tmp_path, dtype=jnp.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    half, wide = load(tmp_path, dtype="bfloat16"), load(tmp_path)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), llama.params)
    assert _equal(half.params, rounded)
    assert _equal(wide.params, jax.tree.map(lambda x: x.astype(jnp.float32), rounded))


def test_a_mesh_holds_each_weight_once_along_latent(lm, tmp_path):
    save(lm, tmp_path)
    sharded, parts = load(tmp_path, mesh=make_mesh(data=2)), 4
    assert _equal(sharded.params, lm.params)
    flat = weights.flatten(sharded.params)
    for path, leaf in flat.items():
        share = leaf.size // leaf.addressable_shards[0].data.size
        assert len(leaf.sharding.device_set) == 8
        assert share == (1 if "norm" in path or path.endswith("bias") else parts), path
    up = flat["blocks.mlp.up.weight"]
    assert up.addressable_shards[0].data.shape == (4, 24 // parts, 16)
    tokens = np.random.default_rng(0).integers(0, 24, (8, 6)).astype(np.int32)
    quick = {"xla_backend_optimization_level": 0}
    go = jax.jit(run, static_argnames=("taps", "logits"), compiler_options=quick)
    site = "blocks.2.mlp_out"
    for got, expected in zip(go(sharded, tokens, (site,)), go(lm, tokens, (site,)), strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected
        )


def test_each_device_reads_only_its_rows(folder, monkeypatch, llama):
    """Counts the numbers that are read: no more than the file holds."""
    count = []
    original = weights.opened

    class Counted:
        def __init__(self, lazy):
            self.lazy = lazy

        def __getattr__(self, name):
            return getattr(self.lazy, name)

        def __getitem__(self, index):
            part = self.lazy[index]
            count.append(part.size)
            return part

    @contextlib.contextmanager
    def counted(files):
        with original(files) as tensors:
            yield {name: Counted(lazy) for name, lazy in tensors.items()}

    monkeypatch.setattr(weights, "opened", counted)
    load(folder, mesh=make_mesh(data=2))
    assert sum(count) == parameters(llama)
    assert max(count) <= 24 * 16 // 4


def test_all_misfits_are_listed_at_once(folder):
    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:5]
        tensors["model.layers.0.extra"] = np.zeros(3, np.float32)
        tensors["model.layers.2.input_layernorm.weight"] = np.zeros(16, np.int8)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(2, np.float32)

    _rewrite(folder, change)
    with pytest.raises(JaxdiffError) as error:
        load(folder)
    what = error.value.what
    for line in (
        "4 tensors do not fit",
        "missing: model.layers.1.mlp.up_proj.weight [24, 16]",
        "shape: model.norm.weight is [5], the config says [16]",
        "dtype: model.layers.2.input_layernorm.weight is I8",
        "unknown: model.layers.0.extra",
    ):
        assert line in what
    assert "inv_freq" not in what


def test_the_head_of_a_tied_model_is_ignored(gemma2, tmp_path):
    save(gemma2, tmp_path)
    _rewrite(tmp_path, lambda t: t.update({"lm_head.weight": np.zeros((24, 16), np.float32)}))
    assert _equal(load(tmp_path).params, gemma2.params)


def test_truncated_and_missing_files_are_named(golden, tmp_path, folder):
    sharded = tmp_path / "sharded"
    shutil.copytree(golden / "gemma2_window_caps", sharded)
    load(sharded)
    second = sharded / "model-00002-of-00003.safetensors"
    second.write_bytes(second.read_bytes()[:-7])
    with pytest.raises(JaxdiffError, match="truncated or damaged") as error:
        load(sharded)
    assert second.name in error.value.what and str(sharded) == error.value.where
    second.unlink()
    with pytest.raises(JaxdiffError, match=f"1 of 3 weight files are missing: {second.name}"):
        load(sharded)
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": ')
    with pytest.raises(JaxdiffError, match="not JSON"):
        load(sharded)
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(JaxdiffError, match="no weight_map"):
        load(sharded)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(JaxdiffError, match="truncated or damaged"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(JaxdiffError, match="no weights"):
        load(folder)


def test_a_save_replaces_a_model_in_several_files(golden, gemma2, tmp_path):
    shutil.copytree(golden / "gemma2_window_caps", tmp_path / "several")
    save(gemma2, tmp_path / "several")
    assert _equal(load(tmp_path / "several").params, gemma2.params)


def test_a_failed_save_leaves_the_old_weights(folder, llama, monkeypatch):
    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full_disk)
    with pytest.raises(JaxdiffError, match="No space left"):
        save(jax.tree.map(np.negative, llama), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert _equal(load(folder).params, llama.params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "architecture 'bert' is not supported"),
        ({"model_type": None}, "architecture None is not supported"),
        ({"hidden_act": "tanh"}, "hidden_act='tanh' is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "yarn"),
        ({"hidden_size": "wide"}, "not valid"),
        ({"num_key_value_heads": 3}, "no multiple"),
        ({"num_hidden_layers": 5}, "missing: model.layers.4.input_layernorm.weight"),
        ({"num_hidden_layers": 3}, "unknown: model.layers.3.input_layernorm.weight"),
    ],
)
def test_configs_that_cannot_be_used(folder, changes, message):
    _reconfigure(folder, **changes)
    with pytest.raises(JaxdiffError) as error:
        load(folder)
    assert message in error.value.what and str(folder) in error.value.where and error.value.fix


def test_an_unsupported_architecture_says_how_to_add_one(folder):
    _reconfigure(folder, model_type="t5")
    with pytest.raises(JaxdiffError) as error:
        load(folder)
    assert all(word in error.value.fix for word in (*ARCHITECTURES, "registry.py"))


def test_rows_cover_every_parameter_once(lm):
    for family in ARCHITECTURES.values():
        paths = [path for row in family.rows for path in row.paths]
        assert len(family.rows) == len({row.hf for row in family.rows})
        assert len(paths) == len(set(paths))
    shapes = weights.flatten(abstract(lm.spec)[1])
    places = sources(ARCHITECTURES[lm.spec.architecture], lm.spec.n_heads, shapes)
    names = [name for place in places.values() for name in place.names.values()]
    assert places.keys() == shapes.keys() and len(names) == len(set(names))
    with pytest.raises(ValueError, match="no row for blocks.new"):
        sources(ARCHITECTURES["llama"], 4, {"blocks.new": jnp.zeros(4)})


@pytest.mark.parametrize(
    "changes", [{"post_norms": True}, {"qk_norm": "head"}, {"windows": (3, None, 3, None)}]
)
def test_a_model_that_its_config_cannot_describe_is_not_saved(llama, tmp_path, changes):
    odd = dataclasses.replace(llama.spec, **changes)
    with pytest.raises(JaxdiffError, match=f"cannot say {next(iter(changes))}"):
        save(dataclasses.replace(llama, spec=odd), tmp_path / "odd")
    assert not (tmp_path / "odd").exists()
