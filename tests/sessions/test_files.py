"""A session in a file is the session, and strange files are refused before anything is run."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors import deserialize
from safetensors.numpy import save as serialise

from jaxdiff import edits, sessions
from jaxdiff.edits import Set, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import Tap
from jaxdiff.sessions import Captured, session, step

SITE = "blocks.0.resid_post"


def test_it_comes_back(lms, texts, make, tmp_path):
    job = make(*texts)
    sessions.save(job, tmp_path / "new" / "job.safetensors")
    found = sessions.load(tmp_path / "new" / "job.safetensors")
    assert jax.tree.structure(found) == jax.tree.structure(job)
    jax.tree.map(np.testing.assert_array_equal, found, job)
    assert sessions.dumps(found) == sessions.dumps(job)
    said, again = (sessions.shapes(each, lms) for each in (job, found))
    assert said == again


def test_the_hash_knows_what_is_asked(texts, make):
    job = make(*texts)
    renamed = dataclasses.replace(job.steps[2], model="base")
    others = (
        make(*texts, 3.0),
        make(texts[2], *texts[1:]),
        dataclasses.replace(job, keep=job.keep[:1]),
        dataclasses.replace(job, steps=(*job.steps[:2], renamed)),
    )
    hashes = {sessions.content_hash(each) for each in (job, *others)}
    assert len(hashes) == 5
    assert sessions.content_hash(jax.device_put(job)) == sessions.content_hash(job)


def _changed(change):
    """A file whose JSON is another one."""
    use = step("use", "ft", np.zeros((1, 2), np.int32), (), (edit(SITE, Set(Captured("a", "h"))),))
    first = step("a", "ft", np.zeros((1, 2), np.int32), (Tap(SITE, name="h"),))
    data = sessions.dumps(session((first, use), keep=(Captured("a", "h"),)))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    content = json.loads(header["__metadata__"]["jaxdiff.session"])
    arrays = {n: np.frombuffer(a["data"], np.int32).reshape(1, 2) for n, a in deserialize(data)}
    change(content, content["items"][0]["fields"])
    return serialise(arrays, {"jaxdiff.session": json.dumps(content)})


def _step(fields, i):
    return fields["steps"][i]["fields"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c, f: f["steps"].reverse(), "'a' is not computed before it"),
        (lambda c, f: _step(f, 0).update(name="b"), "there is no step 'a'"),
        (lambda c, f: _step(f, 0).update(name=None), "name of Step cannot be None"),
        (lambda c, f: _step(f, 0).update(name=""), "a step needs a name"),
        (lambda c, f: _step(f, 1).update(logits="all"), "logits of Step cannot be 'all'"),
        (lambda c, f: _step(f, 1).update(edits=_step(f, 0)["taps"]), "edits with Tap"),
        (lambda c, f: _step(f, 1).update(edits=None), "edits with NoneType"),
        (lambda c, f: _step(f, 0).update(taps=_step(f, 0)["taps"][0]), "taps with Tap"),
        (
            lambda c, f: _step(f, 0).update(sequences="abc"),
            "sequences is 'abc', which is no number",
        ),
        (lambda c, f: f["keep"][0].update(fields="a"), "fields of Captured are no object"),
        (lambda c, f: f.update(keep=None), "keep is a tuple"),
        (lambda c, f: f.update(keep=["all"]), "str is nothing to keep"),
        (lambda c, f: f["keep"][0].update({"class": "os.system"}), "'os.system' is no"),
        (lambda c, f: f["keep"][0]["fields"].update(step=["a"]), "step of Captured cannot be"),
        (lambda c, f: c["items"].append(c["items"][0]), "a file of 2 sessions"),
        (lambda c, f: c.update(items=f["steps"]), "Step, Step has no place"),
        (lambda c, f: c.update(version=0), "version 0 of the format"),
    ],
)
def test_strange_files_are_refused(change, says):
    with pytest.raises(JaxdiffError, match=says) as error:
        sessions.loads(_changed(change), where="here")
    assert error.value.where.startswith("here")


def test_files_of_other_kinds(texts, make, tmp_path):
    job = make(*texts)
    with pytest.raises(JaxdiffError, match="no file of a session"):
        sessions.loads(edits.dumps(job.steps[0].taps))
    with pytest.raises(JaxdiffError, match="no file of edits"):
        edits.loads(sessions.dumps(job))
    with pytest.raises(JaxdiffError, match="cannot be saved"):
        edits.dumps(job.steps[2].edits)
    with pytest.raises(JaxdiffError, match="No such file"):
        sessions.load(tmp_path / "none")
    own = (edit("embed", lambda value, at: value),)
    with pytest.raises(JaxdiffError, match="Partial cannot be saved"):
        sessions.dumps(
            session((step("a", "b", texts[0], ("embed",), own),), (Captured("a", "embed"),))
        )
