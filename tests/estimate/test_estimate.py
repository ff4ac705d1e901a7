"""The command and what it refuses; figures of the model, where the compiler is not installed."""

import json

import pytest

from jaxdiff import cli, config, estimate
from jaxdiff.errors import JaxdiffError
from jaxdiff.estimate.chips import CHIPS
from jaxdiff.estimate.topology import split


def run(*words: str) -> int:
    return cli.main(["estimate", *words])


def test_a_table_and_all_numbers(capsys, tmp_path):
    file = tmp_path / "estimate.json"
    assert run("quickstart", "--topology", "h100:8", "--json", str(file)) == 0
    out = capsys.readouterr().out
    assert "ANALYTICAL MODEL" in out.splitlines()[0]
    for word in ("harvest", "train batch_topk", "parameters", "all-reduce", "tokens/s"):
        assert word in out
    found = json.loads(file.read_text())
    assert found["method"] == "analytical model" and found["mesh"] == {"data": 1, "latent": 8}
    step = found["stages"]["train batch_topk"]
    assert step["fits"] and step["step_seconds"] == max(step["roofline"].values())
    assert step["tokens_per_second"] == pytest.approx(512 / step["step_seconds"])
    assert found["chip"]["source"]


def test_fields_of_the_config_can_be_set(capsys):
    words = ("quickstart", "--topology", "h100:8", "--mesh.data", "2", "--train.batch", "1024")
    assert run(*words) == 0
    assert "mesh data=2 x latent=4" in capsys.readouterr().out


def test_what_does_not_fit_says_what_to_change(capsys):
    words = ("gemma2_2b_chat", "--topology", "h100:1", "--width", "2304")
    assert run(*words, "--dictionaries.batch-topk.latents", "1048576") == 0
    out = capsys.readouterr().out
    assert "NO" in out and "times a device's memory" in out
    assert "split the latents over more devices" in out
    assert "harvest" not in out.splitlines()[2]


def test_rows_of_text_that_leave_devices_idle(capsys):
    assert run("quickstart", "--topology", "h100:8", "--harvest.batch", "12") == 0
    assert "harvest.batch = 12 rows fill 75% of 8 devices; 16 fill all" in capsys.readouterr().out


def stages(tmp_path, **changes) -> dict:
    """Returns the JSON of a run of three dictionaries with other settings."""
    several = {
        "a": {"latents": 65_536, "k": 64},
        "b": {"latents": 65_536, "k": 64, "activation": "topk"},
        "diff": {"latents": 512, "k": 64, "difference": True},
    }
    preset = config.load("quickstart").model_dump(mode="json")
    content = preset | {"dictionaries": several, "null_pair": None} | changes
    file, found = tmp_path / "run.yaml", tmp_path / "found.json"
    file.write_text(json.dumps(content))
    assert run(str(file), "--topology", "h100:1", "--json", str(found), "--mesh.data", "1") == 0
    return json.loads(found.read_text())


def test_dictionaries_of_one_pass_share_the_devices(tmp_path, capsys):
    found = stages(tmp_path)
    a, b = (found["stages"][f"train {name}"] for name in "ab")
    (both,) = found["passes"]
    # The difference is a source of its own, hence another pass.
    assert both["stages"] == ["train a", "train b"] and both["fits"]
    assert both["seconds"] == pytest.approx(a["step_seconds"] + b["step_seconds"])
    assert both["tokens_per_second"] == pytest.approx(512 / both["seconds"])
    for cause in ("parameters", "moments", "counters"):
        assert both["memory"][cause] == a["memory"][cause] + b["memory"][cause]
    # The second state is made while the first is there, and takes its parameters again.
    memory = both["memory"]
    kept = sum(size for cause, size in memory.items() if cause != "temporaries")
    assert both["start"] == pytest.approx(kept + b["memory"]["parameters"])
    for cause in ("inputs", "next batch", "temporaries"):
        assert both["memory"][cause] == max(a["memory"][cause], b["memory"][cause])
    assert "together: a, b take turns on each batch" in capsys.readouterr().out


def test_models_that_run_meanwhile_are_in_memory_with_a_dictionary(tmp_path):
    harvest = config.load("quickstart").harvest.model_dump(mode="json") | {"mode": "stream"}
    found = stages(tmp_path, harvest=harvest)
    models, diff = (found["stages"][name] for name in ("harvest", "train diff"))
    alone = found["passes"][1]
    assert alone["stages"] == ["harvest", "train diff"]
    assert alone["memory"]["models"] == models["memory"]["parameters"]
    # A batch of 512 tokens is an eighth of the tokens of a forward pass.
    per_token = models["step_seconds"] / (32 * 128)
    assert alone["seconds"] == pytest.approx(diff["step_seconds"] + 512 * per_token)


def test_dictionaries_that_do_not_fit_together_are_trained_apart():
    preset = config.load("gemma2_2b_chat")
    update = {"dictionaries": {n: config.DictionaryConfig(latents=300_000) for n in "abc"}}
    found = estimate.estimate(
        preset.model_copy(update=update), estimate.parse("h100:1"), width=2304
    )
    (together,) = found.passes
    assert all(stage.fits for stage in found.stages.values()) and not together.fits
    assert "train.together = 1 fits" in together.advice[-1]
    assert together.advice[-1] in " ".join(estimate.advice(found))


def test_the_step_is_shown_and_auto_takes_the_faster_one(tmp_path, capsys):
    train = config.load("quickstart").train.model_dump(mode="json") | {"beta1": 0.0, "batch": 4096}
    found = {
        step: stages(tmp_path, train=train | {"step": step})["stages"] for step in ("auto", "dense")
    }
    for name in ("train a", "train diff"):
        auto, dense = found["auto"][name], found["dense"][name]
        times = auto["step"]["compared"]
        assert times["dense"] == dense["step_seconds"] and dense["step"]["compared"] == {}
        assert auto["step_seconds"] == min(times.values())
        assert auto["step"]["name"] == min(times, key=times.get)
        assert auto["advice"][0].startswith("train.step = auto")
    # Many latents and few entries: sparse; few latents: dense.
    assert found["auto"]["train a"]["step"]["name"] == "sparse"
    assert found["auto"]["train diff"]["step"]["name"] == "dense"
    out = capsys.readouterr().out
    assert "sparse (auto)" in out and "dense (auto)" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quickstart"], "needs --topology"),
        (["--topology", "h100:8"], "needs a config"),
        (["quickstart", "--topology", "v9:2x2"], "no topology 'v9:2x2'"),
        (["quickstart", "--topology", "v5:2x2"], "did you mean v5"),
        (["quickstart", "--topology", "v5p:3x3x3"], "v5p:4x4x4"),
        (["quickstart", "--topology", "v5e:2x2x2"], "known shapes are v5e:1x1"),
        (["quickstart", "--topology", "v6e:32x32"], "TPU v6e (Trillium) is not offered as 32x32"),
        (["quickstart", "--topology", "h100:0"], "is not offered as 0"),
        (["quickstart", "--topology", "h100:3"], "latents = 512 cannot be split over 3 devices"),
        (
            ["quickstart", "--topology", "h100:8", "--mesh.data", "3"],
            "data=3 x latent=2 does not use the 8 devices",
        ),
        (["gemma2_2b_chat", "--topology", "h100:8"], "give --width"),
        (
            [
                "diff_sae",
                "--topology",
                "h100:8",
                "--site",
                "blocks.1.resid_post,blocks.2.resid_post",
            ],
            "a difference is of two models at one site, this run has 4 sources",
        ),
        (["transcoder", "--topology", "h100:8", "--site", "blocks.2.mlp_out"], "of 2 sources"),
    ],
)
def test_what_cannot_be_estimated(capsys, words, message):
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out


def test_every_shape_that_is_listed_is_accepted():
    for chip in CHIPS.values():
        for shape in chip.shapes:
            found = estimate.parse(f"{chip.name}:{shape}")
            assert found.devices == found.chips * chip.devices
    with pytest.raises(JaxdiffError, match="does not use the 4 devices"):
        split(estimate.parse("h100:4"), config.MeshConfig(data=2, latent=1))
