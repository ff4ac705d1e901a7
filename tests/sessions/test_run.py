"""A session is the runs that it says, composed by hand; and what it cannot be is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import sessions
from jaxdiff.edits import Add, FromRow, Last, Mean, PerLayer, Project, Set, TopK, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import Tap, chosen, run, traces, with_edits
from jaxdiff.sessions import Average, Captured, Difference, PerRow, Session, Step, session, step

STREAM, INTO = "blocks.*.resid_post", "blocks.*.mlp_out"


def _by_hand(lms, warm, cold, prompts, strength=2.0):
    """The runs of the session, one after the other."""
    last = Tap(STREAM, reduce=Last(), name="last")
    taps = (last, Tap(INTO, reduce=Mean(), name="mean"))
    _, first = run(lms["base"], warm, taps, logits=False)
    _, second = run(lms["base"], cold, (last, Tap("embed", reduce=Last())), logits=False)
    vector = jnp.mean(first["last"], axis=1) - jnp.mean(second["last"], axis=1)
    edits = (
        edit(STREAM, PerLayer(Add(vector, jnp.full(2, strength))), layers=1),
        edit(INTO, PerLayer(Set(first["mean"][:, :, None])), positions=[1]),
    )
    probe = Tap(STREAM, reduce=Project(second["embed"]), name="probe")
    logits, found = run(lms["ft"], prompts, (probe,), edits, logits="last")
    return logits, vector, found["probe"]


def test_it_is_the_runs_composed_by_hand(lms, texts, make):
    found = sessions.run(make(*texts), lms)
    jax.tree.map(np.testing.assert_array_equal, found, jax.jit(_by_hand)(lms, *texts))
    for value, expected in zip(found, _by_hand(lms, *texts), strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-5)
    assert found[1].shape == (2, 8) and np.abs(found[1]).min() > 0


def test_other_leaves_are_the_same_program(lms, texts, make):
    first = sessions.run(make(*texts), lms)
    before = traces()
    other = sessions.run(make(*(text[:, ::-1].copy() for text in texts), 3.0), lms)
    assert traces() == before and np.abs(first[0] - other[0]).min() > 0
    # What is said about a model is no part of the program.
    again = {name: dataclasses.replace(lm, changes=("merge it",)) for name, lm in lms.items()}
    jax.tree.map(np.testing.assert_array_equal, sessions.run(make(*texts), again), first)
    assert traces() == before


def test_what_nobody_uses_is_not_computed(lms, texts, make):
    job = make(*texts)
    unused = step("unused", "ft", texts[0], taps=(STREAM,), logits=True)
    more = dataclasses.replace(job, steps=(*job.steps, unused))
    last = dataclasses.replace(job, keep=(job.keep[1],))

    def products(job):
        lowered = jax.jit(lambda lms: sessions.run(job, lms)).lower(lms)
        return lowered.as_text().count("dot_general")

    assert products(last) < products(job) == products(more)


def test_a_dry_run_says_what_there_will_be(lms, texts, make):
    job = make(*texts)
    before = traces("session")
    said = sessions.shapes(job, {name: lm.spec for name, lm in lms.items()})
    assert traces("session") == before
    assert [(s.shape, s.dtype) for s in said] == [
        (value.shape, value.dtype) for value in sessions.run(job, lms)
    ]


def test_gradients_go_through_what_is_captured(lms, texts, make):
    """The derivative by an edit of the first step reaches the last one's logits."""
    site, warm, prompts = "blocks.0.resid_post", texts[0], texts[2]

    def job(shift):
        push = edit(site, Add(shift))
        patch = edit(site, Set(PerRow(Captured("first", site))))
        return session(
            (
                step("first", "base", warm, (Tap(site, reduce=Mean()),), (push,)),
                step("second", "ft", prompts, edits=(patch,), logits="last"),
            ),
            keep=(Captured("second", "logits"),),
        )

    @jax.jit
    def loss(shift):
        return jnp.mean(jnp.square(sessions.run(job(shift), lms)[0]))

    gradient = jax.jit(jax.grad(loss))(jnp.zeros(8))
    step_ = 1e-2 * gradient / jnp.linalg.norm(gradient)
    rise = (loss(step_) - loss(-step_)) / 2
    np.testing.assert_allclose(rise, 1e-2 * jnp.linalg.norm(gradient), rtol=1e-2)


def test_a_model_may_carry_edits_that_rows_choose(lms, texts):
    own = (edit("embed", Add(np.ones(8, np.float32))),)
    named = with_edits(lms["base"], own, name="own")
    job = session((step("only", "any", texts[0], logits=True),), keep=(Captured("only", "logits"),))
    choice = [("own",), (), ()]
    (found,) = sessions.run(job, {"any": chosen(named, choice)})
    np.testing.assert_array_equal(found, run(chosen(named, choice), texts[0])[0])
    with pytest.raises(JaxdiffError, match="a mask of 2") as error:
        sessions.run(job, {"any": chosen(named, choice[:2])})
    assert error.value.where == "step 'only', embed"


def _two(lms, edits=(), taps=(), keep=None, **more):
    """A session whose second step has these edits; the first one captures three things."""
    tokens = np.zeros((2, 4), np.int32)
    first = step("first", "base", tokens, ("embed", Tap("embed", reduce=TopK(2), name="pair")))
    # By the classes, as a file is read: the functions' types would not let all of it through.
    taps = tuple(Tap(tap) if isinstance(tap, str) else tap for tap in taps)
    second = Step("second", "ft", np.zeros((3, 4), np.int32), taps, edits, logits=True, **more)
    kept = (Captured("second", "logits"),) if keep is None else keep
    return sessions.run(Session((first, second), kept), lms)


def _set(*value):
    return (edit("blocks.0.resid_post", Set(*value)),)


@pytest.mark.parametrize(
    ("asked", "what", "where"),
    [
        ({"edits": _set(Captured("frist", "embed"))}, "there is no step 'frist'", "step 'second'"),
        ({"edits": _set(Captured("second", "logits"))}, "not computed before", "step 'second'"),
        ({"edits": _set(Captured("first", "embd"))}, "captures no 'embd'", "step 'second'"),
        ({"edits": _set(Captured("first", "logits"))}, "captures no 'logits'", "step 'second'"),
        ({"keep": (Average(Captured("third", "embed")),)}, "there is no step 'third'", "keep"),
        ({"keep": ("logits",)}, "str is nothing to keep", "keep"),
        ({"keep": ()}, "without a value that is kept", "session"),
        ({"taps": (Tap("embed", offload=True),)}, "stays on the device", "step 'second'"),
        ({"taps": ("logits",)}, "several taps are called logits", "step 'second'"),
        ({"edits": (lambda value, at: value,)}, "edits with function", "step 'second'"),
        # What the host knows is refused before anything is traced,
        ({"taps": ("blocks.0.resid_psot",)}, "no site", "step 'second', site"),
        (
            {"edits": (edit("embed", Set(Captured("first", "embed")), positions=7),)},
            "positions are outside of the batch: 7",
            "step 'second', embed",
        ),
        ({"edits": (edit("embed", FromRow(5)),)}, "row are outside", "step 'second', embed"),
        ({"sequences": np.zeros((3, 5), np.int32)}, "sequences are", "step 'second', sequences"),
        # and what follows from shapes before anything is compiled.
        (
            {"edits": _set(Captured("first", "embed"))},
            "does not fit the value of its site",
            "step 'second', blocks.0.resid_post",
        ),
        (
            {"keep": (Difference(Captured("first", "embed"), Captured("second", "logits")),)},
            r"a difference of \[2, 4, 8\] and \[3, 4, 11\]",
            "keep, Difference",
        ),
        ({"edits": _set(Average(Captured("first", "pair")))}, "tuple is no array", None),
        ({"taps": (Tap("embed", dtype="bflat16"),)}, "TypeError: .*bflat16", "step 'second'"),
        (
            {"keep": (PerRow(Captured("first", "embed"), axis=3),)},
            "no axis 3",
            "keep, axis of rows",
        ),
    ],
)
def test_what_a_session_cannot_be_is_said_with_the_step(lms, asked, what, where):
    with pytest.raises(JaxdiffError, match=what) as error:
        _two(lms, **asked)
    assert where in (None, error.value.where)


@pytest.mark.usefixtures("untyped")
def test_a_comma_is_soon_forgotten(lms):
    one = step("first", "base", np.zeros((2, 4), np.int32), ("embed",))
    keep = Captured("first", "embed")
    for part, items in {"taps": Tap("embed"), "edits": edit("embed", Set(0.0))}.items():
        with pytest.raises(JaxdiffError, match=f"{part} with {type(items).__name__}"):
            session((step("a", "base", one.tokens, **{part: items}),), keep=(keep,))
    with pytest.raises(JaxdiffError, match="steps is a tuple, not Step"):
        session(one, keep=(keep,))
    with pytest.raises(JaxdiffError, match="keep is a tuple, not Captured"):
        session((one,), keep=keep)
    with pytest.raises(JaxdiffError, match="a model is given by its name, not as LM"):
        session((step("first", lms["base"], one.tokens, ("embed",)),), keep=(keep,))
    with pytest.raises(JaxdiffError, match="other parts than names"):
        session((one,), keep=(Captured("first", Tap("embed")),))
    with pytest.raises(JaxdiffError, match="Step is no session"):
        sessions.dumps(one)
    with pytest.raises(JaxdiffError, match="models are given by name"):
        sessions.run(session((one,), keep=(keep,)), lms["base"])


def test_names_and_models(lms):
    twice = step("first", "base", np.zeros((2, 4), np.int32), ("embed",))
    with pytest.raises(JaxdiffError, match="two steps have this name"):
        session((twice, twice), keep=(Captured("first", "embed"),))
    with pytest.raises(JaxdiffError, match="taps are a tuple"):
        step("first", "base", twice.tokens, "embed")
    with pytest.raises(JaxdiffError, match="without a step"):
        session((), keep=(Captured("first", "embed"),))
    job = session((twice,), keep=(Captured("first", "embed"),))
    with pytest.raises(JaxdiffError, match="there is no model 'base'") as error:
        sessions.run(job, {"base_1": lms["base"]})
    assert (error.value.where, error.value.fix) == ("step 'first'", "nearest: base_1")
    with pytest.raises(JaxdiffError, match="captures no 'emebd'") as error:
        session((twice,), keep=(Captured("first", "emebd"),))
    assert error.value.fix == "nearest: embed"
    # The order of steps is the order of computation.
    uses = step("uses", "base", twice.tokens, edits=_set(Captured("first", "embed")))
    with pytest.raises(JaxdiffError, match="'first' is not computed before it") as error:
        session((uses, twice), keep=(Captured("first", "embed"),))
    assert error.value.where == "step 'uses'"
