"""One step: the same on every mesh, compiled once, with annealing, AuxK and dead counters."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxdiff.activations.normalization import Normalization
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import DATA, make_mesh, sharding
from jaxdiff.training import compiled
from jaxdiff.training.sparsity import annealed_k
from jaxdiff.training.state import init_state
from jaxdiff.training.step import train_step

SHAPE, BATCH = (2, 6), 32


class Unchanged(NamedTuple):
    """A normalisation that `lower` can fill with descriptions in place of arrays."""

    def apply(self, x):
        return x


def batch(seed=0):
    return np.random.default_rng(seed).normal(size=(BATCH, *SHAPE)).astype(np.float32)


def run(config, mesh, steps=3):
    train = TrainConfig(steps=10, batch=BATCH, lr=1e-2, warmup=2)
    start, like = compiled.compile_init(config, train, SHAPE, mesh)
    step = compiled.compile_step(config, train, like, mesh)
    shift = Normalization.identity(SHAPE)
    state, infos = None, []
    for i in range(steps):
        x = compiled.put(batch(i), mesh)
        state = start(x, shift, key=jax.random.key(0)) if state is None else state
        state, info = step(state, x, shift)
        infos.append(jax.device_get(info))
    assert step._cache_size() == 1  # k, the L1 weight and the step are traced.
    return state, infos


@pytest.fixture(scope="module")
def alone():
    return {rule: run(config(rule), make_mesh(1, 1)) for rule in ("batch_topk", "relu")}


def config(rule):
    # The dead window is short, so that AuxK is at work.
    return DictionaryConfig(
        latents=16, k=0.2, activation=rule, dead_after=40, k_start=0.5, k_anneal=4
    )


@pytest.mark.parametrize(
    "rule, data, latent",
    [("batch_topk", 2, 4), ("batch_topk", 8, 1), ("batch_topk", 1, 8), ("relu", 2, 4)],
)
def test_same_on_one_and_on_eight_devices(alone, rule, data, latent):
    mesh = make_mesh(data, latent)
    state, infos = run(config(rule), mesh)
    assert state.params.W_dec.sharding.spec == P("latent")
    assert state.optimizer[1][0].mu.W_enc.sharding.spec == P(None, None, "latent")
    assert len(state.params.W_dec.sharding.device_set) == 8
    expected, expected_infos = alone[rule]
    leaves = jax.tree.leaves((state, infos)), jax.tree.leaves((expected, expected_infos))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
    if rule == "batch_topk":
        assert float(infos[-1].aux) > 0 and float(infos[-1].dead) > 0


def test_only_sums_cross_devices():
    """Parameters and codes [B, L] stay where they are, also in the search for the n-th key."""
    mesh = make_mesh(2, 4)
    train = TrainConfig(steps=10, batch=BATCH)
    _, like = compiled.compile_init(config("batch_topk"), train, SHAPE, mesh)
    step = compiled.compile_step(config("batch_topk"), train, like, mesh)
    x = jax.ShapeDtypeStruct((BATCH, *SHAPE), jnp.float32, sharding=sharding(mesh, DATA))
    text = step.lower(like, x, Unchanged()).compile().as_text()
    assert "all-reduce(" in text and f"f32[{BATCH // 2},4]" in text  # The local part of [B, L].
    for operation in ("all-gather(", "all-to-all(", "collective-permute("):
        assert operation not in text


def test_a_mesh_that_does_not_fit_is_refused():
    train = TrainConfig(batch=BATCH)
    with pytest.raises(JaxdiffError, match="latents = 12 cannot be split over 8"):
        compiled.check_mesh(DictionaryConfig(latents=12), train, make_mesh(1, 8))
    with pytest.raises(JaxdiffError, match="batch = 30"):
        compiled.check_mesh(DictionaryConfig(latents=8), TrainConfig(batch=30), make_mesh(8, 1))


def test_k_is_annealed():
    c = DictionaryConfig(k=2, k_start=10, k_anneal=4)
    assert [float(annealed_k(c, jnp.int32(i))) for i in (0, 2, 4, 9)] == [10, 6, 2, 2]
    assert float(annealed_k(DictionaryConfig(k=2), jnp.int32(0))) == 2


def test_annealing_reaches_the_selection():
    _, infos = run(DictionaryConfig(latents=16, k=2, k_start=4, k_anneal=2, aux=0), make_mesh(1, 1))
    assert [float(i.l0) for i in infos] == [4, 3, 2]


def test_idle_counts_tokens_since_a_latent_fired():
    c = DictionaryConfig(latents=16, k=0.25, aux=0)
    train = TrainConfig(steps=10, batch=BATCH, lr=1e-9, warmup=0)
    state = init_state(c, train, jnp.asarray(batch()), key=jax.random.key(0))
    never = jnp.arange(16) == 5
    state = state._replace(
        params=dataclasses.replace(state.params, b_enc=jnp.where(never, -100.0, state.params.b_enc))
    )
    step = jax.jit(functools.partial(train_step, config=c, train=train))
    for i in range(3):
        state, _ = step(state, jnp.asarray(batch(i)))
    idle = np.asarray(state.idle)
    assert idle[5] == 3 * BATCH and (idle == 0).any() and (idle % BATCH == 0).all()


def test_aux_revives_dead_latents():
    """Latents that never win are pulled back when AuxK is on, and stay dead without it."""

    def dead_at_the_end(aux):
        c = DictionaryConfig(latents=16, k=1, aux=aux, dead_after=2 * BATCH)
        train = TrainConfig(steps=150, batch=BATCH, lr=1e-2, warmup=0)
        state = init_state(c, train, jnp.asarray(batch()), key=jax.random.key(0))
        # Half the latents get tiny decoders: positive values, hopeless ranking keys.
        weak = (jnp.arange(16) < 8)[:, None, None]
        W = jnp.where(weak, 1e-2 * state.params.W_dec, state.params.W_dec)
        state = state._replace(params=dataclasses.replace(state.params, W_dec=W))
        step = jax.jit(functools.partial(train_step, config=c, train=train))
        seen = []
        for i in range(150):
            state, info = step(state, jnp.asarray(batch(i)))
            seen.append(float(info.dead))
        return seen[10], np.mean(seen[-20:])

    assert dead_at_the_end(0.0)[1] >= 0.4
    before, after = dead_at_the_end(1 / 32)
    assert before >= 0.3 and after <= before / 2


@pytest.mark.parametrize("change", [{"k": 20}, {"k": 4, "k_start": 20, "k_anneal": 5}])
def test_more_active_latents_than_there_are_are_refused(change):
    config = DictionaryConfig(latents=16, **change)
    with pytest.raises(JaxdiffError, match="k = 20 is above its 16 latents"):
        compiled.compile_init(config, TrainConfig(batch=BATCH), SHAPE, make_mesh(1, 1))
