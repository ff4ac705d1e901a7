"""Runs whose dictionaries are not of two models at one site: trained, and not diffed."""

import pytest

from jaxdiff import cli, config, pipeline
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh
from jaxdiff.pipeline import inputs
from jaxdiff.training import read_result

RULES = {
    "sae": {"difference": True},
    "transcoder": {"reads": (0,), "writes": (1,), "skip": True},
    "both": {},
}
THREE = {
    "base": "organism:chat-tiny/base",
    "ft": "organism:chat-tiny/chat",
    "others": ["organism:null-tiny/longer"],
}


def settings(out, *rules, **more):
    preset = config.load("diff_sae").model_dump()
    preset["text"] |= {"train_sequences": 60, "validation_sequences": 20, "test_sequences": 1}
    preset["train"] |= {"steps": 10, "batch": 128, "warmup": 5}
    own = {name: {"latents": 64, "k": 8} | RULES[name] for name in rules}
    return config.parse(preset | {"out": out, "dictionaries": own} | more)


def test_a_diff_sae_and_a_transcoder(tmp_path, capsys):
    run = settings(tmp_path, "sae", "transcoder")
    assert pipeline.run(run) is None
    sae, transcoder = (read_result(tmp_path / "main" / "train" / name) for name in run.dictionaries)
    assert sae.dictionary.W_dec.shape == (64, 1, 96)
    assert sae.normalization.scale.shape == (1,)
    d = transcoder.dictionary
    assert (d.reads, d.writes, d.W_dec.shape) == ((0,), (1,), (64, 1, 96))
    assert d.W_skip is not None and d.W_skip.any()
    assert len(transcoder.evaluation.fve) == 1 and transcoder.normalization.scale.shape == (2,)
    assert not (tmp_path / "main" / "diff").exists()
    with pytest.raises(JaxdiffError, match="nothing to report"):
        pipeline.report(run)
    path = tmp_path / "run.yaml"
    path.write_text(run.model_dump_json())
    capsys.readouterr()
    assert cli.main(["run", str(path)]) == 0  # All is there; nothing is done again.
    assert str(tmp_path / "main" / "train") in capsys.readouterr().out


def test_which_dictionaries_can_be_diffed(tmp_path):
    run = settings(tmp_path, *RULES)
    assert [name for name in RULES if run.compares(name)] == ["both"]
    layers = settings(tmp_path, "both", site="blocks.1.resid_post, blocks.2.resid_post")
    three = settings(tmp_path, "both", models=THREE)
    assert not layers.compares("both") and not three.compares("both")


def test_a_third_model_is_loaded_and_counts(tmp_path):
    three = settings(tmp_path, "both", models=THREE)
    loaded = inputs.load_pair(three.models, make_mesh(1, 1))
    assert len(loaded.models) == 3


def test_the_null_pair_has_as_many_models(tmp_path):
    with pytest.raises(JaxdiffError, match="as many models"):
        settings(tmp_path, "both", null_pair=THREE)
