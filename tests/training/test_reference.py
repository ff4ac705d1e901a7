"""Loss, gradients and two optimizer steps against float64 NumPy, to 1e-5 relative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries import Dictionary, init, loss
from jaxdiff.training.state import TrainState, init_l1, make_optimizer
from jaxdiff.training.step import train_step

pytestmark = pytest.mark.smoke

SHAPE, LATENTS, BATCH = (2, 6), 16, 24
NORMS = ("crosscoder", "sae", "mixed", "none", "decoupled")
CASES = [("batch_topk", norm) for norm in NORMS] + [
    ("relu", "crosscoder"),
    ("relu", "sae"),
    ("relu", "mixed"),
    ("relu", "decoupled"),
    ("topk", "crosscoder"),
]


def problem(activation, norm, **more):
    config = DictionaryConfig(
        latents=LATENTS, activation=activation, code_norm=norm, k=3, l1=0.1, same_init=False, **more
    )
    d = init(config, SHAPE, key=jax.random.key(1))
    rng = np.random.default_rng(2)
    # Decoder norms that differ, so that ranking by them matters; biases that are not zero.
    scale = rng.uniform(0.3, 2.0, (LATENTS, 2, 1)).astype(np.float32)
    d = Dictionary(
        d.W_enc,
        jnp.asarray(rng.normal(size=LATENTS) * 0.1, jnp.float32),
        d.W_dec * scale,
        jnp.asarray(rng.normal(size=SHAPE), jnp.float32),
        d.threshold,
        d.activation,
        d.k,
        d.code_norm,
    )
    x = rng.normal(size=(2, BATCH, *SHAPE)).astype(np.float32)
    return config, d, x


def close(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def float64(d, reference):
    return {n: np.asarray(getattr(d, n), np.float64) for n in reference.NAMES}


@pytest.mark.parametrize(
    "activation, norm, squared",
    [(*case, False) for case in CASES] + [("batch_topk", "crosscoder", True)],
)
def test_loss_and_gradient(reference, activation, norm, squared):
    config, d, (x, _) = problem(activation, norm, loss="mse" if squared else "l2", dead_after=100)
    idle = np.where(np.arange(LATENTS) % 3 == 0, 1000, 0)
    p = float64(d, reference)
    rule = {"activation": activation, "kind": norm, "k": 3, "squared": squared}
    _, _, fired = reference.loss_and_gradient(p, x.astype(np.float64), **rule)
    dead = (idle > 0) & ~fired
    value, gradient, _ = reference.loss_and_gradient(
        p, x.astype(np.float64), **rule, l1=0.1, aux=config.aux, dead=dead
    )
    objective = functools.partial(loss, config=config)
    arguments = {"k": jnp.float32(3), "l1": jnp.float32(0.1), "idle": jnp.asarray(idle, jnp.int32)}
    (found, _), found_gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(
        d, x, **arguments
    )
    close(found, value)
    for name in reference.NAMES:
        close(getattr(found_gradient, name), gradient[name])


@pytest.mark.parametrize("dead_count", [2, 9])
def test_aux_with_few_and_with_many_dead_latents(reference, dead_count):
    config, d, (x, _) = problem("batch_topk", "crosscoder", dead_after=100)
    dead = np.arange(LATENTS) < dead_count
    p = float64(d, reference)
    # Dead latents have a positive value but a key far below the others.
    p["W_dec"][dead] *= 1e-3
    d = Dictionary(**{**vars(d), "W_dec": jnp.asarray(p["W_dec"], jnp.float32)})
    rule = {"activation": "batch_topk", "kind": "crosscoder", "k": 3, "aux": config.aux}
    value, gradient, fired = reference.loss_and_gradient(p, x.astype(np.float64), **rule, dead=dead)
    without, _, _ = reference.loss_and_gradient(
        p, x.astype(np.float64), **rule, dead=np.zeros(LATENTS, bool)
    )
    assert not fired[dead].any() and value > without + 1e-3
    objective = functools.partial(loss, config=config, k=jnp.float32(3), l1=jnp.float32(0))
    (found, _), found_gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(
        d, x, idle=jnp.asarray(np.where(dead, 1000, 0), jnp.int32)
    )
    close(found, value)
    for name in reference.NAMES:
        close(getattr(found_gradient, name), gradient[name])


@pytest.mark.parametrize("activation, norm", CASES[:6])
def test_two_optimizer_steps(reference, activation, norm):
    config, d, xs = problem(activation, norm)
    train = TrainConfig(steps=10, batch=BATCH, lr=1e-2, warmup=4, clip=0.05)
    state = TrainState(
        d,
        make_optimizer(config, train).init(d),
        jnp.int32(0),
        jnp.zeros(LATENTS, jnp.int32),
        init_l1(config),
    )
    step = jax.jit(functools.partial(train_step, config=config, train=train))
    for x in xs:
        state, info = step(state, x)
    rule = {"activation": activation, "kind": norm, "k": 3, "l1": 0.1}
    grads = [
        lambda p, x=x: reference.loss_and_gradient(p, x.astype(np.float64), **rule)[1] for x in xs
    ]
    start = float64(d, reference)
    expected = reference.adam(start, grads, lr=1e-2, warmup=4, clip=0.05)
    for name in reference.NAMES:
        close(getattr(state.params, name), expected[name])
        assert np.abs(expected[name] - start[name]).max() > 1e-3
    assert float(info.gradient_norm) > train.clip  # So clipping was at work.
