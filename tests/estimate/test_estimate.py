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
