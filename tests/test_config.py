import pydantic
import pytest
import yaml

from jaxdiff import config
from jaxdiff.config import RunConfig, TrainConfig
from jaxdiff.errors import JaxdiffError

SMALL = {
    "out": "runs/x",
    "models": {"base": "a", "ft": "b"},
    "text": {"sources": [{"path": "text.txt"}]},
}


def small_dictionary(**settings):
    return {"dictionaries": {"d": {"latents": 8, "k": 2} | settings}}


@pytest.mark.parametrize("name", config.presets())
def test_presets_are_valid_and_begin_with_what_they_are(name: str):
    assert isinstance(config.load(name), RunConfig)
    first = config.presets()[name].read_text().splitlines()[:2]
    assert all(line.startswith("# ") for line in first)
    assert f"jaxdiff {'' if name == 'quickstart' else 'run '}{name}" in first[1]


def test_the_papers_preset_has_the_papers_setting():
    gemma = config.load("gemma2_2b_chat")
    own = gemma.dictionaries["batch_topk"]
    assert (own.latents, own.k, gemma.site) == (73_728, 100, "blocks.13.resid_post")
    assert gemma.train.batch * gemma.train.steps == pytest.approx(200e6, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sead": 1}, "did you mean seed?"),
        ({"train": {"stepps": 3}}, "did you mean steps?"),
        ({"text": {"sources": [{"pth": "x"}]}}, "did you mean path?"),
        ({"dictionaries": {"l1": {"latent": 3}}}, "did you mean latents?"),
        ({"null_pair": {"bas": "x"}}, "did you mean base?"),
        ({"train": {"steps": "many"}}, "'many'"),
        ({"train": {"steps": 0}}, "train.steps"),
        ({"dictionaries": {"l1": {"latents": 8, "k": 9}}}, "k = 9 is above"),
        (small_dictionary(k_start=9, k_anneal=5), "k = 9 is above its 8 latents"),
        (small_dictionary(k_start=0, k_anneal=5), "dictionaries.d.k_start"),
        (small_dictionary(aux_k=0), "dictionaries.d.aux_k"),
        (small_dictionary(activation="topk", k=0.4), "k and k_start must be whole"),
        (small_dictionary(activation="topk", k_start=2.5, k_anneal=5), "k_start must be whole"),
        (small_dictionary(activation="group_max", k=1.5), "group_max needs a whole k"),
        (small_dictionary(activation="group_max", k_start=4, k_anneal=5), "k_start is for other"),
        ({"dictionaries": {"a/b": {}}}, "cannot be a folder's name"),
        ({"dictionaries": {}}, "at least one dictionary"),
        ({"out": "gs://bucket/run"}, "must be local"),
    ],
)
def test_a_wrong_field_is_named_with_the_nearest_right_one(change: dict, said: str):
    with pytest.raises(JaxdiffError, match="cannot be used") as error:
        config.parse(SMALL | change)
    assert said in str(error.value)


def test_all_wrong_fields_are_listed_at_once():
    with pytest.raises(JaxdiffError) as error:
        config.parse({"out": "x", "sead": 1})
    assert all(name in str(error.value) for name in ("sead", "models", "text"))


def test_load_reads_a_file_and_refuses_what_is_none(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    assert config.load(path) == config.parse(SMALL)
    for content in ("[1, 2]", "a: [", "\xff"):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(JaxdiffError, match="config"):
            config.load(path)
    with pytest.raises(JaxdiffError, match="did you mean quickstart"):
        config.load("quikstart")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        config.parse(SMALL).seed = 3  # type: ignore[misc]


def test_small_moments_are_of_the_sparse_step():
    TrainConfig(beta1=0, step="sparse", moment_dtype="bfloat16")
    with pytest.raises(pydantic.ValidationError, match="needs step sparse .and beta1 0., got auto"):
        TrainConfig(beta1=0, moment_dtype="bfloat16")
