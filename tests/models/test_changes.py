"""A model says what was done to its weights, also after it was saved; programs do not ask."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxdiff.edits import Add, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import (
    center_unembedding,
    center_writing,
    fold_norms,
    generate,
    load,
    load_report,
    run,
    save,
    stack,
    traces,
    unstack,
    with_edits,
)
from jaxdiff.readouts import compare

DONE = ("untie", "center_writing", "fold_norms", "center_unembedding")


@pytest.fixture(scope="module")
def processed(golden):
    return center_unembedding(fold_norms(center_writing(load(golden / "gpt2"))))


def _tokens():
    return np.random.default_rng(0).integers(0, 24, (2, 6)).astype(np.int32)


def test_every_change_is_said_in_order(processed, golden):
    assert load(golden / "gpt2").changes == ()
    assert processed.changes == DONE
    steered = with_edits(unstack(processed), (edit("embed", Add(1.0)),))
    assert stack(steered).changes == DONE


def test_a_saved_model_knows_it(processed, golden, tmp_path):
    save(processed, tmp_path)
    again = load(tmp_path)
    assert again.changes == load_report(tmp_path).changes == DONE
    assert f"changes: {', '.join(DONE)}" in str(load_report(tmp_path))
    assert fold_norms(again).changes == (*DONE, "fold_norms")
    # One that was not changed has the file that transformers writes.
    save(load(golden / "gpt2"), tmp_path)
    assert "jaxdiff_changes" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("given", ["fold_norms", [1], {"fold": "norms"}])
def test_a_record_that_is_none_is_refused(golden, tmp_path, given):
    save(load(golden / "gpt2"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"jaxdiff_changes": given}))
    for read in (load, load_report):
        with pytest.raises(JaxdiffError, match="no list of strings"):
            read(tmp_path)


def test_models_that_differ_in_it_share_programs(llama):
    other, tokens = replace(llama, changes=("fold_norms",)), _tokens()
    run(llama, tokens), generate(llama, tokens, 2), compare(llama, llama, tokens)
    before = traces()
    run(other, tokens), generate(other, tokens, 2)
    diff = compare(llama, other, tokens)
    assert traces() == before
    np.testing.assert_array_equal(diff.kl, 0.0)
    np.testing.assert_array_equal(diff.distance["blocks.*.resid_post"], 0.0)


def test_an_edit_is_the_same_program_wherever_it_comes_from(llama):
    own, tokens = (edit("blocks.1.resid_post", Add(1.0)),), _tokens()
    expected = run(llama, tokens, edits=own)[0]
    before = traces("run")
    np.testing.assert_array_equal(run(with_edits(llama, own), tokens)[0], expected)
    assert traces("run") == before


def test_a_compiled_change_says_which_model_it_was_given(llama):
    fold = jax.jit(fold_norms)
    other = replace(llama, changes=("merge other",))
    assert fold(llama).changes == ("fold_norms",)
    assert fold(other).changes == ("merge other", "fold_norms")
