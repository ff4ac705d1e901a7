"""A session is the runs that it says, composed by hand; and what it cannot be is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import sessions
from jaxdiff.edits import Add, FromRow, Last, Mean, PerLayer, Project, Set, TopK, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import Tap, run, traces
from jaxdiff.sessions import Average, Captured, Difference, PerRow, session, step



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
