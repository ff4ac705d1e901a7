"""Adapters: against a merge of the files in float64, and what must be refused."""

import dataclasses
import json
import re
import shutil
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh
from jaxdiff.models import (
    attach,
    fingerprint,
    init,
    load,
    load_report,
    load_spec,
    merge,
    run,
    run_together,
    save,
)
from jaxdiff.models._weights import flatten

PREFIX = "base_model.model."

# case -> names of the modules that are updated, what the config says of them, and the rank and
# scale that follow for each.
CASES = {
    "llama_gqa_untied_llama3": (
        r"self_attn\.[qv]_proj|mlp\.down_proj",
        {
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "r": 3,
            "lora_alpha": 6,
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, r".*\.0\.mlp\.down_proj": 4},
            "alpha_pattern": {"v_proj": 9.0},
        },
        {
            r"1\.self_attn\.q": (2, 3.0),
            r"v_proj": (3, 3.0),
            r"0\.mlp": (4, 1.5),
            r"": (3, 2.0),
        },
    ),
    "gpt2": (
        r"attn\.c_attn|attn\.c_proj",
        {"target_modules": ["attn.c_attn", "attn.c_proj"], "r": 2, "lora_alpha": 1},
        {r"": (2, 0.5)},
    ),
    "gpt_neox_parallel": (
        r"query_key_value|dense_h_to_4h",
        {
            "target_modules": r".*\.(query_key_value|dense_h_to_4h)",
            "r": 4,
            "lora_alpha": 3,
            "use_rslora": True,
        },
        {r"": (4, 1.5)},
    ),
    "phi3_longrope": (
        r"1\.(self_attn\.qkv_proj|mlp\.gate_up_proj)",
        {
            "target_modules": ["qkv_proj", "gate_up_proj"],
            "layers_to_transform": [1],
            "layers_pattern": "layers",
            "r": 2,
            "lora_alpha": 2,
        },
        {r"": (2, 1.0)},
    ),
    "qwen3_moe": (
        r"q_proj|mlp\.gate\b|experts\.\d+\.(up|down)_proj",
        {"target_modules": ["q_proj", "up_proj", "down_proj", "gate"], "r": 2, "lora_alpha": 3},
        {r"": (2, 1.5)},
    ),
    "gemma2_untied_no_caps": (
        r"o_proj|lm_head",
        {"target_modules": ["o_proj", "lm_head"], "r": 2, "lora_alpha": 2, "bias": "none"},
        {r"": (2, 1.0)},
    ),
}
# Those that update only what can be kept apart.
APART = ("llama_gqa_untied_llama3", "gpt2", "gpt_neox_parallel", "phi3_longrope")


def _files(folder):
    tensors = {}
    for path in folder.glob("model*.safetensors"):
        tensors |= load_file(path)
    return tensors


def _write(folder, tensors, **config):
    folder.mkdir(exist_ok=True)
    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": None} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _factors(shape, rank, rng, transposed=False):
    inputs, outputs = shape if transposed else shape[::-1]
    return [
        rng.normal(0, 0.3, size).astype(np.float32) for size in ((rank, inputs), (outputs, rank))
    ]


def _make(case, golden, folder):
    """Writes an adapter and a model merged in float64; returns their directories."""
    modules, config, strengths = CASES[case]
    rng = np.random.default_rng(3)
    transposed = case == "gpt2"
    adapter, merged = {}, {}
    for name, value in _files(golden / case).items():
        wide = value.astype(np.float64)
        module = name.removesuffix(".weight")
        if re.search(rf"({modules})$", module):
            rank, scale = next(v for part, v in strengths.items() if re.search(part, module))
            a, b = _factors(value.shape, rank, rng, transposed)
            adapter |= {
                f"{PREFIX}{module}.lora_A.weight": a,
                f"{PREFIX}{module}.lora_B.weight": b,
            }
            update = scale * b.astype(np.float64) @ a
            wide += update.T if transposed else update
        merged[name] = wide.astype(np.float32)
    config = config | {"base_model_name_or_path": str(golden / case)}
    _write(folder / "adapter", adapter, **config)
    (folder / "merged").mkdir()
    save_file(merged, folder / "merged" / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(golden / case / "config.json", folder / "merged")
    return folder / "adapter", folder / "merged"


def _close(a, b, atol=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=atol), a, b)


def _tokens(lm, rows=2):
    return np.random.default_rng(0).integers(0, lm.spec.vocab_size, (rows, 7)).astype(np.int32)


@pytest.fixture(scope="module")
def case(golden, tmp_path_factory):
    """A base, an adapter of it, and the merged model, by name of the case."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = golden / name, *_make(name, golden, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_merging_equals_the_merge_of_the_files(case, name, stacked):
    base, adapter, merged = case(name)
    lm = load(base, stacked=stacked)
    ft = attach(lm, adapter)
    expected = load(merged, stacked=stacked)
    assert ft.spec == expected.spec and ft.graphdef == expected.graphdef
    assert jax.tree.structure(ft.params) == jax.tree.structure(expected.params)
    assert ft.changes == load(adapter).changes == load_report(adapter).changes
    assert ft.changes == (f"merge {adapter}",) and not expected.changes
    _close(ft.params, expected.params)
    _close(load(adapter, stacked=stacked).params, ft.params, atol=0)
    # What is left alone is the base's own array.
    kept = [path for path, leaf in flatten(ft.params).items() if leaf is flatten(lm.params)[path]]
    assert any("norm" in path for path in kept)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("name", APART)
def test_kept_apart_equals_merged(case, name, stacked):
    base, adapter, merged = case(name)
    apart = attach(load(base, stacked=stacked), adapter, merge=False)
    expected = load(merged, stacked=stacked)
    assert apart.spec.lora and dataclasses.replace(apart.spec, lora=()) == expected.spec
    _close(flatten(apart.params)["embedding"], expected.params["embedding"], atol=0)
    together = merge(apart)
    assert together.changes == (f"attach {adapter}", "merge")
    assert merge(together) is together
    assert together.spec == expected.spec and together.graphdef == expected.graphdef
    _close(together.params, expected.params)
    tokens = _tokens(apart)
    _close(run(apart, tokens)[0], run(expected, tokens)[0], atol=2e-5)


def test_gradients_of_the_factors_are_those_of_the_merged_weights(case):
    """`dL/dB = (dL/dW) A'` and `dL/dA = B' (dL/dW)`, with the scale in B."""
    base, adapter, _ = case("llama_gqa_untied_llama3")
    apart = attach(load(base), adapter, merge=False)
    tokens = _tokens(apart)

    def loss(params, lm):
        return jnp.mean(jnp.sin(run(dataclasses.replace(lm, params=params), tokens)[0]))

    own = flatten(jax.grad(loss)(apart.params, apart))
    together = merge(apart)
    whole = flatten(jax.grad(loss)(together.params, together))
    params = flatten(apart.params)
    for stem, rank in apart.spec.lora:
        path = f"blocks.{stem}"
        gradient, a, b = whole[f"{path}.weight"], params[f"{path}.lora_a"], params[f"{path}.lora_b"]
        assert a.shape[1] == b.shape[2] == rank == {"mlp.down": 4}.get(stem, 3)
        _close(own[f"{path}.lora_b"], np.einsum("noi,nri->nor", gradient, a), atol=1e-5)
        _close(own[f"{path}.lora_a"], np.einsum("noi,nor->nri", gradient, b), atol=1e-5)
        assert np.abs(own[f"{path}.lora_a"]).max() > 1e-4


def test_layers_and_ranks_that_are_absent_are_zero(case):
    base, adapter, _ = case("phi3_longrope")
    params = flatten(attach(load(base), adapter, merge=False).params)
    for name in ("attn.q", "attn.k", "attn.v", "mlp.gate", "mlp.up"):
        for factor in ("lora_a", "lora_b"):
            first, second = params[f"blocks.{name}.{factor}"]
            assert not first.any() and second.any()
    # The parts of a joined matrix share what reads its input.
    np.testing.assert_array_equal(params["blocks.attn.q.lora_a"], params["blocks.attn.v.lora_a"])
    base, adapter, _ = case("llama_gqa_untied_llama3")
    params = flatten(attach(load(base), adapter, merge=False).params)
    a, b = params["blocks.attn.q.lora_a"], params["blocks.attn.q.lora_b"]
    assert a[0].any(axis=1).all() and b[0].any(axis=0).all()
    assert not a[1, 2].any() and not b[1, :, 2].any()


@pytest.mark.parametrize("stacked", [True, False])
def test_bfloat16_is_rounded_once(case, stacked):
    base, adapter, merged = case("gpt2")
    half = attach(load(base, dtype="bfloat16", stacked=stacked), adapter)
    # The base's files are bfloat16 already, so that both start from the same numbers.
    expected = load(merged, dtype="bfloat16", stacked=stacked)

    def same(x, y):
        return x.dtype == y.dtype and (x == y).mean() > 0.99

    assert jax.tree.all(jax.tree.map(same, half.params, expected.params))
    apart = attach(load(base, dtype="bfloat16", stacked=stacked), adapter, merge=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(apart)} == {jnp.dtype(jnp.bfloat16)}
    logits, exact = run(apart, _tokens(apart))[0], run(load(merged), _tokens(apart))[0]
    error = np.linalg.norm(np.asarray(logits, np.float32) - exact) / np.linalg.norm(exact)
    assert logits.dtype == jnp.bfloat16 and error < 0.05


@pytest.mark.parametrize("stacked", [True, False])
def test_a_mesh_keeps_its_layout(case, stacked):
    base, adapter, _ = case("phi3_longrope")
    mesh = make_mesh(data=2)
    sharded, plain = load(base, mesh=mesh, stacked=stacked), load(base, stacked=stacked)
    _close(attach(sharded, adapter).params, attach(plain, adapter).params)
    for old, new in zip(
        jax.tree.leaves(sharded), jax.tree.leaves(attach(sharded, adapter)), strict=True
    ):
        assert old.sharding.is_equivalent_to(new.sharding, old.ndim)
    apart = attach(sharded, adapter, merge=False)
    _close(apart.params, attach(plain, adapter, merge=False).params)
    layer = (None,) if stacked else ()
    at = "blocks.mlp.up" if stacked else "blocks.1.mlp.up"
    flat = flatten(apart.params)
    assert flat[f"{at}.weight"].sharding.spec == PartitionSpec(*layer, "latent")
    assert flat[f"{at}.lora_b"].sharding.spec == PartitionSpec(*layer, "latent", None)
    assert flat[f"{at}.lora_a"].sharding.spec == PartitionSpec(*layer, None, None)
    _close(merge(apart).params, attach(plain, adapter).params)
    tokens = _tokens(plain, rows=8)
    go = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})
    _close(go(apart, tokens)[0], go(attach(plain, adapter), tokens)[0], atol=2e-5)


@pytest.mark.parametrize("merge", [True, False])
def test_modules_and_biases_are_replaced(golden, tmp_path, merge):
    base = golden / "llama_mha_tied_biases"
    files = {name: value.astype(np.float32) for name, value in _files(base).items()}
    rng = np.random.default_rng(0)
    a, b = _factors((16, 16), 2, rng)
    query = "model.layers.1.self_attn.q_proj"
    new = {
        "lm_head.weight": rng.normal(size=(29, 16)).astype(np.float32),
        f"{query}.base_layer.bias": rng.normal(size=16).astype(np.float32),
        "model.layers.0.input_layernorm.weight": rng.normal(size=16).astype(np.float32),
        f"{query}.lora_A.default.weight": a,
        f"{query}.lora_B.default.weight": b,
    }
    adapter = _write(
        tmp_path / "adapter",
        {PREFIX + name: value for name, value in new.items()},
        target_modules=[query],
        modules_to_save=["lm_head", "layers.0.input_layernorm"],
        bias="lora_only",
        base_model_name_or_path=str(base),
    )
    lm = load(base)
    ft = attach(lm, adapter, merge=merge)
    assert lm.spec.tied and not ft.spec.tied and load_spec(adapter) == load(adapter).spec
    flat, old = flatten(ft.params), flatten(lm.params)
    _close(flat["unembedding"], new["lm_head.weight"], atol=0)
    _close(flat["embedding"], files["model.embed_tokens.weight"], atol=0)
    _close(flat["blocks.attn.q.bias"][1], new[f"{query}.base_layer.bias"], atol=0)
    _close(flat["blocks.attn.q.bias"][0], old["blocks.attn.q.bias"][0], atol=0)
    norm = flat["blocks.attn_norm.weight"]
    _close(norm[0], new["model.layers.0.input_layernorm.weight"], atol=0)
    _close(norm[1], old["blocks.attn_norm.weight"][1], atol=0)
    save(load(adapter), tmp_path / "saved")
    _close(load(tmp_path / "saved").params, load(adapter).params, atol=0)


def test_an_embedding_is_updated_by_row(golden, tmp_path):
    base = golden / "llama_mha_tied_biases"
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 29)).astype(np.float32), rng.normal(size=(16, 2)).astype(np.float32)
    at = f"{PREFIX}model.embed_tokens"
    adapter = _write(
        tmp_path,
        {f"{at}.lora_embedding_A": a, f"{at}.lora_embedding_B": b},
        target_modules=["embed_tokens"],
        lora_alpha=4,
    )
    lm = load(base)
    ft = attach(lm, adapter)
    _close(ft.params["embedding"], lm.params["embedding"] + 2 * (b @ a).T)
    _close(ft.params["unembedding"], lm.params["embedding"], atol=0)
    _configure(adapter, base_model_name_or_path=str(base))
    assert ft.changes == load_report(adapter).changes == ("untie", f"merge {adapter}")
    with pytest.raises(JaxdiffError, match="updates of embedding cannot be kept apart"):
        attach(lm, adapter, merge=False)


def test_a_second_adapter_is_added_to_the_first(case):
    base, adapter, _ = case("gpt2")
    lm = load(base)
    once = attach(lm, adapter)
    twice = attach(attach(lm, adapter, merge=False), adapter)
    assert twice.spec.lora
    first, second = once.params, merge(twice).params
    jax.tree.map(lambda w, x, y: _close(y - x, x - w, atol=1e-5), lm.params, first, second)
    with pytest.raises(JaxdiffError, match="has an adapter beside its weights already"):
        attach(twice, adapter, merge=False)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_base_and_its_adapter_run_together(case, stacked):
    base, adapter, _ = case("gpt2")
    lm = load(base, stacked=stacked)
    both = (lm, attach(lm, adapter, merge=False))
    tokens = _tokens(lm)
    for model, logits in zip(both, run_together(both, tokens).logits, strict=True):
        _close(run(model, tokens)[0], logits, atol=1e-5)


def test_a_model_can_be_trained_with_an_adapter(case):
    base, adapter, _ = case("gpt2")
    spec = attach(load(base), adapter, merge=False).spec
    lm = init(spec, key=jax.random.key(0))
    plain = init(dataclasses.replace(spec, lora=()), key=jax.random.key(0))
    assert jax.tree.structure(lm.params) != jax.tree.structure(plain.params)
    tokens = _tokens(lm)
    # It starts as the model without.
    _close(run(lm, tokens)[0], run(merge(lm), tokens)[0], atol=0)


def test_names_of_a_directory(case, tmp_path):
    base, adapter, merged = case("gpt2")
    assert load_spec(adapter) == load_spec(base)
    report = load_report(adapter)
    assert not report.problems and len(report.consumed) == 28 + 8
    joined = f"{PREFIX}h.1.attn.c_attn.lora_B.weight"
    assert set(report.consumed[joined]) == {f"blocks.attn.{name}.weight" for name in "qkv"}

    marks = {fingerprint(base), fingerprint(adapter), fingerprint(merged)}
    copy = shutil.copytree(adapter, tmp_path / "copy")
    assert len(marks) == 3 and fingerprint(copy) == fingerprint(adapter)
    tensors = load_file(copy / "adapter_model.safetensors")
    tensors[joined][0, 0] += 1
    save_file(tensors, copy / "adapter_model.safetensors")
    marks.add(fingerprint(copy))
    shutil.copy(adapter / "adapter_model.safetensors", copy)
    _configure(copy, lora_alpha=2)
    marks.add(fingerprint(copy))
    moved = shutil.copytree(merged, tmp_path / "base")
    _configure(copy, lora_alpha=1, base_model_name_or_path=str(moved))
    marks.add(fingerprint(copy))
    shutil.copy(base / "model.safetensors", moved)
    marks.add(fingerprint(copy))
    assert len(marks) == 7


def _configure(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _retensor(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.fixture
def broken(case, tmp_path):
    base, adapter, _ = case("llama_gqa_untied_llama3")
    return load(base), shutil.copytree(adapter, tmp_path / "broken")


def test_all_misfits_are_listed_at_once(broken):
    lm, adapter = broken
    layer = PREFIX + "model.layers.0."

    def change(tensors):
        query = f"{layer}self_attn.q_proj.lora_"
        tensors["model.layers.0.self_attn.q_proj.lora_A.weight"] = tensors.pop(f"{query}A.weight")
        tensors[f"{PREFIX}model.layers.7.mlp.down_proj.lora_A.weight"] = np.zeros(3, np.float32)
        del tensors[f"{layer}mlp.down_proj.lora_A.weight"]
        del tensors[f"{layer}mlp.down_proj.lora_B.weight"]
        value = f"{layer}self_attn.v_proj.lora_"
        tensors[f"{value}B.weight"] = tensors[f"{value}B.weight"][:5]
        tensors[f"{value}A.weight"] = tensors[f"{value}A.weight"].astype(np.int8)
        tensors[f"{layer}mlp.up_proj.lora_A.weight"] = np.zeros((3, 16), np.float32)
        tensors[f"{layer}mlp.up_proj.lora_B.weight"] = np.zeros((24, 3), np.float32)
        tensors[f"{layer}self_attn.v_proj.lora_magnitude_vector"] = np.zeros(8, np.float32)
        other = PREFIX + "model.layers.1.self_attn.v_proj.lora_A"
        tensors[f"{other}.default.weight"] = tensors[f"{other}.weight"]

    _retensor(adapter, change)
    for go in (lambda: attach(lm, adapter), lambda: load(adapter), lambda: load_spec(adapter)):
        with pytest.raises(JaxdiffError) as error:
            go()
        what = error.value.what
        for line in (
            "does not match the model in 10 ways",
            "unknown: model.layers.0.self_attn.q_proj.lora_A.weight",
            f"missing: lora_A beside {layer}self_attn.q_proj.lora_B.weight",
            f"unknown: {PREFIX}model.layers.7.mlp.down_proj.lora_A.weight",
            "missing: an update of model.layers.0.mlp.down_proj.weight [16, 24], which",
            f"shape: {layer}self_attn.v_proj.lora_B.weight is [5, 3], "
            "model.layers.0.self_attn.v_proj.weight and rank 3 want [8, 3]",
            f"dtype: {layer}self_attn.v_proj.lora_A.weight is I8",
            f"no target: {layer}mlp.up_proj.lora_A.weight",
            f"no target: {layer}mlp.up_proj.lora_B.weight",
            f"unknown: {layer}self_attn.v_proj.lora_magnitude_vector",
            f"twice: {PREFIX}model.layers.1.self_attn.v_proj.lora_A.weight is also there as",
        ):
            assert line in what
        assert error.value.where == str(adapter) and "base_model_name_or_path" in error.value.fix
    assert len(load_report(adapter).problems) == 10


def test_an_adapter_of_another_base(broken, golden):
    _, adapter = broken
    with pytest.raises(JaxdiffError) as error:
        attach(load(golden / "gpt2"), adapter)
    assert error.value.what.count("unknown:") == 12
    with pytest.raises(JaxdiffError) as error:
        attach(load(golden / "mistral_window"), adapter)
    assert "q_proj.lora_B.weight is [16, 3], model.layers.0" in error.value.what
    with pytest.raises(JaxdiffError) as error:
        attach(load(golden / "gemma2_window_caps"), adapter)
    assert "missing: an update of model.layers.2.self_attn.q_proj.weight" in error.value.what


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported; only LORA is"),
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"lora_bias": True}, "lora_bias=True is not supported"),
        ({"init_lora_weights": "pissa"}, "changes the base's own weights too"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices=[1] is not supported"),
        ({"something_new": {"a": 1}}, "something_new={'a': 1} is not supported"),
        ({"r": 0}, "r=0: "),
        ({"r": None}, "r is missing"),
        ({"lora_alpha": "much"}, "lora_alpha='much': "),
        ({"r": 5}, "model.layers.0.self_attn.v_proj.weight and rank 5 want [5, 16]"),
        ({"target_modules": ["k_proj", "q_proj", "v_proj", "down_proj"]}, "self_attn.k_proj"),
        ({"target_modules": ["q_proj", "v_proj"]}, "no target"),
        ({"exclude_modules": ["q_proj"]}, "no target"),
        ({"layers_to_transform": 1}, "no target"),
        ({"modules_to_save": ["lm_head"]}, "missing: lm_head.weight [29, 16], which"),
    ],
)
def test_configs_that_cannot_be_used(broken, changes, message):
    lm, adapter = broken
    _configure(adapter, **changes)
    with pytest.raises(JaxdiffError) as error:
        attach(lm, adapter)
    assert message in error.value.what
    assert str(adapter) in error.value.where and error.value.fix


def test_biases_that_the_config_speaks_of(golden, tmp_path):
    lm = load(golden / "llama_mha_tied_biases")
    query = "model.layers.1.self_attn.q_proj"
    a, b = _factors((16, 16), 2, np.random.default_rng(0))
    names = {f"{PREFIX}{query}.lora_{k}.weight": v for k, v in (("A", a), ("B", b))}
    for bias, count in (("lora_only", 1), ("all", 14)):
        adapter = _write(tmp_path, names, target_modules=[query], bias=bias)
        with pytest.raises(JaxdiffError) as error:
            attach(lm, adapter)
        assert error.value.what.count(f"for bias={bias!r}") == count


def test_every_setting_that_is_wrong_is_listed(broken):
    lm, adapter = broken
    _configure(adapter, peft_type="LOHA", use_dora=True, lora_alpha=None)
    with pytest.raises(JaxdiffError) as error:
        attach(lm, adapter)
    assert error.value.what.count("\n") == 3 and "merge_and_unload" in error.value.fix


@pytest.mark.parametrize("factor", ["A", "B"])
@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_that_changes_nothing_is_refused(broken, factor, merge):
    lm, adapter = broken

    def zero(tensors):
        for name in tensors:
            if f"lora_{factor}" in name:
                tensors[name][:] = 0

    _retensor(adapter, zero)
    with pytest.raises(JaxdiffError, match="every update of the adapter is zero"):
        attach(lm, adapter, merge=merge)


def test_an_adapter_that_is_rounded_off_is_refused(broken, case):
    lm, adapter = broken
    _configure(adapter, lora_alpha=1e-6, alpha_pattern={})
    assert attach(lm, adapter) is not None
    half = load(case("llama_gqa_untied_llama3")[0], dtype="bfloat16")
    with pytest.raises(JaxdiffError, match="so small that adding it to bfloat16 weights") as error:
        attach(half, adapter)
    assert "merge=False" in error.value.fix
    attach(half, adapter, merge=False)


def test_numbers_that_are_not_finite_are_refused(broken):
    lm, adapter = broken
    name = f"{PREFIX}model.layers.1.mlp.down_proj.lora_A.weight"
    _retensor(adapter, lambda tensors: tensors[name].__setitem__((0, 0), np.nan))
    with pytest.raises(JaxdiffError, match="NaN or infinite numbers for blocks.mlp.down.weight"):
        attach(lm, adapter)


def test_what_cannot_be_kept_apart_is_named(case):
    for name, lost in (
        ("qwen3_moe", "mlp.down, mlp.router, mlp.up"),
        ("gemma2_untied_no_caps", "unembedding"),
    ):
        base, adapter, _ = case(name)
        with pytest.raises(JaxdiffError, match=f"updates of {lost} cannot be kept") as error:
            attach(load(base), adapter, merge=False)
        assert "merge=True" in error.value.fix


def test_save_wants_it_merged(case, tmp_path):
    base, adapter, merged = case("gpt2")
    apart = attach(load(base), adapter, merge=False)
    with pytest.raises(JaxdiffError, match="has an adapter beside its weights") as error:
        save(apart, tmp_path / "saved")
    assert "save(merge(lm)" in error.value.fix and not (tmp_path / "saved").exists()
    save(merge(apart), tmp_path / "saved")
    _close(load(tmp_path / "saved").params, load(merged).params)


def test_directories_that_cannot_be_used(broken, golden, tmp_path):
    lm, adapter = broken
    with pytest.raises(JaxdiffError, match="no adapter_config.json"):
        attach(lm, golden / "gpt2")
    with pytest.raises(JaxdiffError, match="nor a hub name"):
        attach(lm, tmp_path / "nowhere")

    _configure(adapter, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(JaxdiffError, match="the base of the adapter .* cannot be used") as error:
        load(adapter)
    assert "gone" in error.value.where and "attach(load(BASE), ADAPTER)" in error.value.fix
    assert attach(lm, adapter).spec == lm.spec
    _configure(adapter, base_model_name_or_path=str(adapter))
    with pytest.raises(JaxdiffError, match="is an adapter itself"):
        load(adapter)
    _configure(adapter, base_model_name_or_path=None)
    with pytest.raises(JaxdiffError, match="does not say which model"):
        load(adapter)
    shutil.copy(golden / "gpt2" / "model.safetensors", adapter)
    with pytest.raises(JaxdiffError, match="is a model .* and an adapter"):
        load(adapter)

    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(JaxdiffError, match="truncated or damaged"):
        attach(lm, adapter)
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(JaxdiffError, match="no adapter_model.safetensors") as error:
        attach(lm, adapter)
    assert "save_pretrained" in error.value.fix
    save_file({}, weights)
    with pytest.raises(JaxdiffError, match="does not match the model"):
        attach(lm, adapter)


@pytest.fixture(scope="module")
def peft(golden):
    """PEFT, and the module that builds the models of the golden files."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # torch and what it imports still use names that Python has deprecated.
        warnings.simplefilter("ignore")
        pytest.importorskip("torch")
        found = pytest.importorskip("peft")
        patch.syspath_prepend(str(golden))
        import cases

        yield types.SimpleNamespace(peft=found, **vars(cases))


# name -> case and settings of the adapter
TRAINED = {
    "llama": ("llama_gqa_untied_llama3", {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "llama_patterns": (
        "llama_gqa_untied_llama3",
        {
            "target_modules": "all-linear",
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 5},
            "alpha_pattern": {"^model.layers.0.*": 3, "up_proj": 7},
            "use_rslora": True,
        },
    ),
    "llama_one_layer": (
        "llama_mha_tied_biases",
        {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [1], "bias": "lora_only"},
    ),
    "llama_heads": (
        "llama_mha_tied_biases",
        {"target_modules": ["k_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    ),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "bias": "all"}),
    "gpt_neox": (
        "gpt_neox_parallel",
        {"target_modules": ["query_key_value", "dense", "dense_4h_to_h"], "use_rslora": True},
    ),
    "phi3": (
        "phi3_longrope",
        {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"], "lora_alpha": 3},
    ),
    "gemma3_ends": (
        "gemma3_text",
        {"target_modules": ["embed_tokens", "lm_head", "gate_proj"], "layers_to_transform": None},
    ),
}
ENDS = ("gemma3_ends",)


@pytest.mark.parity
@pytest.mark.parametrize("name", TRAINED)
def test_logits_equal_those_of_peft(peft, name, tmp_path):
    import torch

    case, settings = TRAINED[name]
    model = peft.build(case)
    model.save_pretrained(tmp_path / "base")
    model.name_or_path = str(tmp_path / "base")
    config = peft.peft.LoraConfig(**{"r": 3, "lora_alpha": 5} | settings)
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings(), torch.no_grad():
        # PEFT warns of tied embeddings and of fan_in_fan_out.
        warnings.simplefilter("ignore")
        trained = peft.peft.get_peft_model(model, config).eval()
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        trained.save_pretrained(tmp_path / "adapter")
        ids = peft.tokens(case)
        expected = trained(ids).logits.numpy()
    lm, tokens = load(tmp_path / "base"), ids.numpy().astype(np.int32)
    assert np.abs(run(lm, tokens)[0] - expected).max() > 0.3
    merged = load(tmp_path / "adapter")
    assert load_spec(tmp_path / "adapter") == merged.spec
    np.testing.assert_allclose(run(merged, tokens)[0], expected, atol=1e-4, rtol=1e-5)
    if name in ENDS:
        with pytest.raises(JaxdiffError, match="updates of embedding, unembedding cannot be kept"):
            attach(lm, tmp_path / "adapter", merge=False)
    else:
        apart = attach(lm, tmp_path / "adapter", merge=False)
        np.testing.assert_allclose(run(apart, tokens)[0], expected, atol=1e-4, rtol=1e-5)
