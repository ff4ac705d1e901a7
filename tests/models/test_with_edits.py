"""Models that carry edits: whatever runs them does what the same edits in its call do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.edits import Add, FromWorld, Scale, Set, Skip, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import generate, merge, run, run_together, save, traces, unstack, with_edits

OWN = (
    edit("blocks.*.resid_post", Add(np.linspace(-2, 2, 16, dtype=np.float32)), layers=[0, 2]),
    edit("blocks.1.attn.z", Scale(0.0), heads=1),
)


def _tokens(seed=0):
    return np.random.default_rng(seed).integers(0, 24, (2, 6)).astype(np.int32)


@pytest.mark.parametrize("apart", [False, True], ids=["stacked", "apart"])
def test_the_models_edits_come_first(lm, apart):
    lm = unstack(lm) if apart else lm
    more = (edit("blocks.2.resid_post", Scale(0.5)),)
    carrying = with_edits(with_edits(lm, OWN[:1]), OWN[1:])
    site = "blocks.*.resid_post"
    found, expected = (
        run(carrying, _tokens(), (site,), more),
        run(lm, _tokens(), (site,), (*OWN, *more)),
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # The other order is another model.
    assert np.abs(run(lm, _tokens(), (), (*more, *OWN))[0] - expected[0]).max() > 1e-2


def test_generation_and_worlds_apply_them(llama):
    carrying = with_edits(llama, OWN)
    written = generate(carrying, _tokens(), 5)
    expected = generate(llama, _tokens(), 5, edits=OWN)
    np.testing.assert_array_equal(written.tokens, expected.tokens)
    np.testing.assert_array_equal(written.log_probs, expected.log_probs)
    both = run_together((llama, carrying), _tokens())
    np.testing.assert_allclose(both.logits[0], run(llama, _tokens())[0], atol=1e-5)
    np.testing.assert_allclose(both.logits[1], run(llama, _tokens(), (), OWN)[0], atol=1e-5)
    undone = (edit("blocks.3.resid_post", FromWorld(0)),)
    patched = run_together((llama, carrying), _tokens(), edits=((), undone))
    np.testing.assert_allclose(patched.logits[1], patched.logits[0], atol=1e-5)


def test_a_block_may_be_skipped_for_good(llama):
    carrying = with_edits(llama, (edit("blocks.1", Skip()),))
    expected = run(llama, _tokens(), (), (edit("blocks.1", Skip()),))[0]
    np.testing.assert_array_equal(run(carrying, _tokens())[0], expected)
    with pytest.raises(JaxdiffError, match="skipped has no values"):
        run(carrying, _tokens(), ("blocks.1.attn_out",))


def test_they_are_leaves_of_the_model(llama):
    def loss(lm):
        return jnp.mean(jnp.square(run(lm, _tokens())[0]))

    start = with_edits(llama, (edit("blocks.2.resid_post", Add(jnp.zeros(16))),))
    gradient = jax.grad(loss, allow_int=True)(start).edits[0].op.vector
    step = 1e-2 * gradient / jnp.linalg.norm(gradient)
    moved = loss(with_edits(llama, (edit("blocks.2.resid_post", Add(step)),)))
    rise = moved - loss(llama)
    np.testing.assert_allclose(rise, 1e-2 * jnp.linalg.norm(gradient), rtol=0.05)
    before = traces("run")
    run(with_edits(llama, (edit("blocks.2.resid_post", Add(jnp.ones(16))),)), _tokens())
    first = traces("run")
    run(with_edits(llama, (edit("blocks.2.resid_post", Add(jnp.zeros(16))),)), _tokens())
    assert traces("run") == first and first <= before + 1


def test_they_stay_where_weights_change_and_are_not_lost_by_a_save(llama, tmp_path):
    carrying = with_edits(llama, OWN)
    assert merge(carrying).edits is carrying.edits
    with pytest.raises(JaxdiffError, match="carries edits"):
        save(carrying, tmp_path)
    assert not list(tmp_path.iterdir())
    assert dataclasses.replace(carrying, edits=()).params is llama.params


def test_what_the_model_does_not_have_is_refused_at_once(llama):
    with pytest.raises(JaxdiffError, match="no site 'blocks.9.resid_post'"):
        with_edits(llama, (edit("blocks.9.resid_post", Set(0.0)),))
    with pytest.raises(JaxdiffError, match="there is no block 7"):
        with_edits(llama, (edit("blocks.7", Skip()),))
