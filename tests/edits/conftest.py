"""Tiny models of every kind of block, and places for values that come from no model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models import LM, At, ModelConfig, Rope, run
from jaxdiff.models._context import place
from jaxdiff.models._lm import abstract

ROWS, LENGTH, VOCAB, WIDTH, LAYERS = 3, 5, 11, 8, 3

_TINY = {"vocab_size": VOCAB, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": 2, "d_mlp": 12}
_ROPE = Rope(theta=100.0)
SPECS = {
    "llama": ModelConfig(**_TINY, n_kv_heads=1, rope=_ROPE, attention_bias=True, tied=False),
    "gemma2": ModelConfig(
        **_TINY,
        architecture="gemma2",
        head_dim=6,
        activation="gelu_tanh",
        norm_offset=1.0,
        post_norms=True,
        attention_softcap=2.0,
        logit_softcap=3.0,
        windows=(3, None, 3),
        embed_scale=True,
    ),
    "parallel": ModelConfig(
        **_TINY,
        architecture="gpt_neox",
        activation="gelu",
        gated=False,
        norm="layer",
        parallel=True,
        rope=Rope(theta=100.0, dim=2),
        attention_bias=True,
        mlp_bias=True,
        tied=False,
    ),
    "post_norm": ModelConfig(
        **_TINY, architecture="olmo2", pre_norms=False, post_norms=True, qk_norm="all", rope=_ROPE
    ),
    "learned": ModelConfig(
        **_TINY, architecture="gpt2", gated=False, norm="layer", rope=None, context=16
    ),
    "experts": ModelConfig(
        **_TINY,
        architecture="qwen3_moe",
        experts=4,
        experts_per_token=2,
        normalize_experts=True,
        qk_norm="head",
        rope=_ROPE,
    ),
}


@functools.cache
def make(name: str) -> LM:
    """A random model whose norms and biases matter too, made without compiling anything."""
    spec, rng = SPECS[name], np.random.default_rng(7)
    graphdef, shapes = abstract(spec)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0.2, 0.5, a.shape), a.dtype), shapes)
    return LM(params=params, graphdef=graphdef, spec=spec)


@pytest.fixture(scope="session", params=SPECS)
def lm(request) -> LM:
    return make(request.param)


@pytest.fixture(scope="session")
def llama() -> LM:
    return make("llama")


@pytest.fixture(scope="session")
def model():
    """Makes a model of a kind."""
    return make


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.fixture(scope="session")
def go():
    """`run` as a program that compiles quickly."""
    options = {"xla_backend_optimization_level": 0}
    names = ("taps", "logits", "attention", "remat")

    @functools.partial(jax.jit, static_argnames=names, compiler_options=options)
    def quick(lm, tokens, taps=(), edits=(), **more):
        return run(lm, tokens, taps, edits, **more)

    return quick


@pytest.fixture(scope="session")
def somewhere():
    """Makes an `At` of tokens that belong to no model."""

    def at(axes, *, rows=ROWS, length=LENGTH, sequences=None, positions=None, **known) -> At:
        if positions is None:
            positions = np.arange(length)[None]
        found = place(jnp.asarray(positions, jnp.int32), sequences)
        return dataclasses.replace(found, axes=axes, **{"layers": LAYERS} | known)

    return at
