"""Every site of every kind of block: what an edit does there matters, and sees what a tap reads."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.edits import Add, edit
from jaxdiff.models import LM, At, canonical_site, run, shapes, sites
from jaxdiff.models._lm import abstract

QUICK = {"xla_backend_optimization_level": 0}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Record:
    """Changes nothing and keeps what it saw; what it saw is no output of the program."""

    into: dict = dataclasses.field(metadata={"static": True})
    name: str = dataclasses.field(metadata={"static": True})

    def __call__(self, value: jax.Array, at: At) -> jax.Array:
        jax.debug.callback(functools.partial(self.into.__setitem__, self.name), value)
        return value


class _Box(dict):
    """A dict that may be static."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def _two_blocks(lm):
    """The model's first two blocks, for programs that are quick to compile."""
    spec = dataclasses.replace(lm.spec, n_layers=2, windows=lm.spec.windows[:2])
    blocks = jax.tree.map(lambda leaf: leaf[:2], lm.params["blocks"])
    return LM(params={**lm.params, "blocks": blocks}, graphdef=abstract(spec)[0], spec=spec)


def test_every_site_matters_and_its_tap_is_what_the_edit_saw(lm, tokens):
    lm, rng, saw = _two_blocks(lm), np.random.default_rng(0), _Box()
    names = tuple(sites(lm))
    _, kept = shapes(lm, tokens.shape, names)
    noise = {n: rng.normal(size=kept[n].shape).astype(np.float32) for n in names}

    @functools.partial(jax.jit, compiler_options=QUICK)
    def program(strengths, noise):
        edits = []
        for i, name in enumerate(names):
            edits += [edit(name, Add(noise[name], strengths[i])), edit(name, Record(saw, name))]
        return run(lm, tokens, names, tuple(edits))

    logits, found = program(jnp.zeros(len(names)), noise)
    jax.effects_barrier()
    assert saw.keys() == found.keys() == set(names)
    for name in names:
        np.testing.assert_array_equal(found[name], saw[name], err_msg=name)
    np.testing.assert_allclose(logits, run(lm, tokens)[0], rtol=2e-4, atol=2e-5)
    for i, name in enumerate(names):
        changed, other = program(jnp.zeros(len(names)).at[i].set(0.5), noise)
        assert np.abs(changed - logits).max() > 1e-3, name
        np.testing.assert_allclose(
            other[name], found[name] + 0.5 * noise[name], rtol=1e-4, atol=1e-5, err_msg=name
        )
        # What comes before the edit is as it was.
        for earlier in names[:i]:
            np.testing.assert_array_equal(other[earlier], found[earlier], err_msg=earlier)


@pytest.mark.parametrize(
    ("alias", "site"),
    [("model.layers.1", "blocks.1.resid_post"), ("blocks.0.hook_mlp_out", "blocks.0.mlp_out")],
)
def test_edits_know_the_names_of_other_libraries(llama, tokens, go, alias, site):
    assert canonical_site(llama.spec, alias) == site
    one, two = (go(llama, tokens, edits=(edit(name, Add(1.0)),))[0] for name in (alias, site))
    np.testing.assert_array_equal(one, two)
