"""The sparse step against the dense one: automatic gradients, and the Adam of optax."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxdiff.kernels.row_adam import Table

from jaxdiff.activations.normalization import Normalization
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.constraints import constrain
from jaxdiff.mesh import make_mesh
from jaxdiff.training import compiled
from jaxdiff.training.penalised_step import penalised_step
from jaxdiff.training.rows import Tables, to_dictionary, to_rows
from jaxdiff.training.sparse_step import sparse_step
from jaxdiff.training.state import init_state
from jaxdiff.training.step import train_step

SHAPE, BATCH = (2, 12), 64


def settings(**changes):
    base = {"latents": 96, "k": 4, "dead_after": 1_000_000, "decoder_norm": 0.5}
    return DictionaryConfig(**(base | changes))


def batches(n, seed=0):
    """Rows of a few hot directions and many rare ones, so that latents are touched unevenly."""
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(60, *SHAPE))
    odds = 1 / (1 + np.arange(60.0))
    for _ in range(n):
        active = rng.random((BATCH, 60)) < odds
        x = np.einsum("bi,imd->bmd", active * rng.exponential(size=(BATCH, 60)), atoms)
        yield (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)


def both(config, train, steps, seed=0, held=True, bias=0.0):
    """Returns both states and their metrics after some steps from the same start."""
    dense = jax.jit(functools.partial(train_step, config=config, train=train))
    rule = penalised_step if config.penalised else sparse_step
    sparse = jax.jit(functools.partial(rule, config=config, train=train, held=held))
    a = b = None
    infos = []
    for x in batches(steps, seed):
        if a is None or b is None:
            a = init_state(config, train, jnp.asarray(x), key=jax.random.key(0))
            params = dataclasses.replace(a.params, b_enc=a.params.b_enc + bias)
            a = a._replace(params=params)
            b = to_rows(a, train)
        (a, one), (b, other) = dense(a, x), sparse(b, x)
        infos.append((one, other))
    assert a is not None and b is not None
    return a, b, infos


CASES = {
    "annealed": (
        {"k_start": 12.0, "k_anneal": 10, "loss": "mse", "code_norm": "sae"},
        {"clip": None},
    ),
    "few dead": (
        {"dead_after": 300, "aux": 0.5, "aux_k": 90, "code_norm": "none"},
        {"clip": 0.05},
    ),
    "many dead": ({"dead_after": 100, "aux": 0.5, "aux_k": 3}, {}),
    "rows": ({"activation": "topk", "dead_after": 300, "aux": 0.5, "aux_k": 90}, {}),
}


@pytest.mark.parametrize(
    "case, held",
    [
        ("annealed", True),
        ("few dead", False),
        ("many dead", True),
        ("many dead", False),
        ("rows", False),
    ],
)
def test_twelve_steps_equal_the_dense_step(monkeypatch, case, held):
    # What is taken of held scores row by row is taken in two parts of the rows.
    monkeypatch.setattr("jaxdiff.kernels.scores._HELD", 32 * 96)
    config, train = CASES[case]
    config = settings(**config)
    train = TrainConfig(steps=50, batch=BATCH, lr=1e-3, warmup=3, beta1=0.0, **train)
    a, b, infos = both(config, train, 12, held=held)
    for one, other in infos:
        for name in one._fields:
            if name != "passes":
                np.testing.assert_allclose(
                    getattr(other, name), getattr(one, name), rtol=2e-4, atol=1e-6, err_msg=name
                )
    np.testing.assert_array_equal(b.idle, a.idle)
    mine = to_dictionary(b.tables, config, SHAPE)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        np.testing.assert_allclose(getattr(mine, name), getattr(a.params, name), atol=2e-5)
    if "dead" in case:
        assert float(infos[-1][0].aux) > 0


L1 = {"activation": "relu", "l1": 0.3}
JUMP = {"activation": "jumprelu", "threshold": 0.4, "bandwidth": 0.5, "l1": 0.2}
PENALISED = {
    "few, streamed": (JUMP, -5.0, False),
    "wide window": (JUMP | {"bandwidth": 2.0, "penalty": "l0"}, -4.0, True),
    "to and fro": (L1 | {"code_norm": "mixed", "match_l0": True}, -3.9, True),
}


@pytest.mark.parametrize("case", PENALISED)
def test_penalised_steps_equal_the_dense_step(monkeypatch, case):
    # Products with all latents are taken in parts: 40, 40 and 16 of them.
    monkeypatch.setattr("jaxdiff.training.penalised_step.PART", 40 * BATCH)
    changes, bias, held = PENALISED[case]
    config = settings(**changes)
    train = TrainConfig(steps=50, batch=BATCH, lr=1e-3, warmup=3, beta1=0.0, clip=0.5)
    a, b, infos = both(config, train, 8, held=held, bias=bias)
    listed = {"wide window": {0}, "to and fro": {0, 1}}.get(case, {1})
    assert {int(other.passes) for _, other in infos} == listed
    for one, other in infos:
        assert one.l0 > 0
        for name in one._fields:
            if name != "passes":
                np.testing.assert_allclose(
                    getattr(other, name), getattr(one, name), rtol=2e-4, atol=1e-6, err_msg=name
                )
    np.testing.assert_array_equal(b.idle, a.idle)
    mine = to_dictionary(b.tables, config, SHAPE)
    expected = constrain(a.params, config)
    # A step moves a parameter by up to 1e-3, also where its gradient is hardly more than rounding.
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        np.testing.assert_allclose(getattr(mine, name), getattr(expected, name), atol=2e-4)


def test_two_hundred_steps_equal_adam_of_optax():
    config = settings(k=1)
    train = TrainConfig(steps=500, batch=BATCH, lr=3e-4, warmup=3, beta1=0.0)
    a, b, _ = both(config, train, 200)
    assert int(jnp.min(b.last)) < 190  # Some rows have waited for long.
    waited = (0.999 ** (200.0 - np.asarray(b.last)))[:, None].astype(np.float32)
    decay = Tables(waited, waited, waited, np.float32(1))
    pairs = zip(b.tables[:4], decay[:4], strict=True)
    moments = Tables(*(Table(t.moment * s, t.moment) for t, s in pairs))
    mine = (to_dictionary(tables, config, SHAPE) for tables in (b.tables, moments))
    found = jax.tree.leaves((*mine, b.idle))
    # The first moment is not used.
    expected = jax.tree.leaves((a.params, optax.tree.get(a.optimizer, "nu"), a.idle))
    for mine, other in zip(found, expected, strict=True):
        size = float(jnp.max(jnp.abs(other)))
        np.testing.assert_allclose(mine, other, rtol=2e-3, atol=2e-4 * size)


def test_dead_latents_without_auxk_cost_nothing_and_count_nothing():
    train = TrainConfig(steps=50, batch=BATCH, lr=1e-3, beta1=0.0, step="sparse")
    infos, _ = run_on(make_mesh(1, 1), settings(k=1, dead_after=1, aux=0.0), train)
    assert float(infos[-1].dead) > 0 and all(float(info.aux) == 0 for info in infos)


def test_a_k_that_rounds_up_selects_no_more_than_there_are_slots():
    """float32 makes 1.015 x 100 into 101.5, which rounds to 102; its slots are 101."""
    config, train = settings(k=1.015, median_bias=False), TrainConfig(batch=100, beta1=0.0)
    x = next(batches(2))
    x = jnp.asarray(np.concatenate([x, x])[:100])
    state = to_rows(init_state(config, train, x, key=jax.random.key(0)), train)
    step = jax.jit(functools.partial(sparse_step, config=config, train=train))
    _, info = step(state, x)
    assert round(float(info.l0) * 100) == 101


@pytest.mark.parametrize(
    "shape, activation, held",
    [
        ((1, 2), "topk", True),
        ((2, 4), "batch_topk", False),
        ((2, 2), "jumprelu", False),
    ],
)
def test_every_mesh_takes_the_same_step(monkeypatch, shape, activation, held):
    config = settings(dead_after=300, aux=0.5, aux_k=3, activation=activation)
    if activation == "jumprelu":
        config = settings(**JUMP, median_bias=False)
    train = TrainConfig(
        steps=50,
        batch=BATCH,
        lr=1e-3,
        warmup=3,
        beta1=0.0,
        step="sparse",
        moment_dtype="bfloat16",
    )
    expected, alone = run_on(make_mesh(1, 1), config, train)
    monkeypatch.setattr(compiled, "_holds_products", lambda mesh: held)
    found, state = run_on(make_mesh(*shape), config, train)
    for one, other in zip(expected, found, strict=True):
        assert other.l0 == one.l0
        np.testing.assert_allclose(other.loss, one.loss, rtol=1e-5)
    assert state.tables.W_dec.moment.dtype == jnp.bfloat16
    # Moments are rounded alike, but where sums in another order are; all copies of a bias are one.
    for mine, other in zip(state.tables[:4], alone.tables[:4], strict=True):
        assert np.mean(np.asarray(mine.moment) != np.asarray(other.moment)) < 0.02
    for copy in state.tables.b_dec.moment.addressable_shards:
        np.testing.assert_array_equal(copy.data, state.tables.b_dec.moment)
    rows = state.tables.W_enc.params
    assert rows.sharding.shard_shape(rows.shape)[0] == config.latents // np.prod(shape)


def test_one_full_list_keeps_all_devices_from_theirs():
    """Latents of the first device are active nearly everywhere, those of the second nowhere."""
    config, mesh = settings(**L1, median_bias=False), make_mesh(1, 2)
    train = TrainConfig(steps=50, batch=BATCH, lr=1e-3, beta1=0.0, step="sparse")
    start, like = compiled.compile_init(config, train, SHAPE, mesh)
    x, same = compiled.put(next(batches(1)), mesh), Normalization.identity(SHAPE)
    state = start(x, same, key=jax.random.key(0))
    b_enc = state.tables.b_enc
    moved = b_enc.params + jnp.where(jnp.arange(96) < 48, 50.0, -50.0)[:, None]
    moved = jax.device_put(moved, b_enc.params.sharding)
    state = state._replace(tables=state.tables._replace(b_enc=b_enc._replace(params=moved)))
    state, info = compiled.compile_step(config, train, like, mesh)(state, x, same)
    assert info.l0 == 48 and info.passes == 0
    np.testing.assert_array_equal(state.last, 1)


def run_on(mesh, config, train):
    start, like = compiled.compile_init(config, train, SHAPE, mesh)
    step = compiled.compile_step(config, train, like, mesh)
    same, state, infos = Normalization.identity(SHAPE), None, []
    for x in batches(10):
        x = compiled.put(x, mesh)
        state = start(x, same, key=jax.random.key(0)) if state is None else state
        state, info = step(state, x, same)
        infos.append(jax.device_get(info))
    return infos, state
