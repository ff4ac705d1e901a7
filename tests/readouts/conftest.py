"""Small random models of every layout, whose norms and biases matter too."""

import jax
import numpy as np
import pytest

from jaxdiff.models import LM, ModelConfig, Rope, init

_SMALL = dict(vocab_size=26, d_model=16, n_layers=3, n_heads=4, d_mlp=20)

SPECS = {
    "llama": ModelConfig(**_SMALL, n_kv_heads=2, rope=Rope(theta=100.0), tied=False),
    "gemma2": ModelConfig(
        **_SMALL,
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
    "olmo2": ModelConfig(
        **_SMALL,
        architecture="olmo2",
        pre_norms=False,
        post_norms=True,
        qk_norm="all",
        tied=False,
    ),
    "gpt2": ModelConfig(
        **_SMALL,
        architecture="gpt2",
        norm="layer",
        gated=False,
        activation="gelu_tanh",
        rope=None,
        attention_bias=True,
        mlp_bias=True,
        context=16,
    ),
    "neox": ModelConfig(
        **_SMALL,
        architecture="gpt_neox",
        norm="layer",
        gated=False,
        activation="gelu",
        parallel=True,
        attention_bias=True,
        mlp_bias=True,
        tied=False,
    ),
    "moe": ModelConfig(
        **_SMALL,
        architecture="qwen3_moe",
        qk_norm="head",
        experts=4,
        experts_per_token=2,
        normalize_experts=True,
        tied=False,
    ),
    "lora": ModelConfig(**_SMALL, attention_bias=True, lora=(("attn.o", 2), ("mlp.down", 2))),
}


def make(name: str) -> LM:
    lm = init(SPECS[name], key=jax.random.key(0))
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.2, x.shape).astype(np.float32), lm)


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    """Compiling is most of the time here, and results are compared with tolerances anyway.

    Not of package scope: without an __init__.py that is the session, and other tests compare bits.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session", params=SPECS)
def lm(request) -> LM:
    return make(request.param)


@pytest.fixture(scope="session", params=["gemma2", "gpt2"])
def some(request) -> LM:
    """For what depends little on the architecture."""
    return make(request.param)


@pytest.fixture(scope="session")
def llama() -> LM:
    return make("llama")


@pytest.fixture(scope="session")
def gemma2() -> LM:
    return make("gemma2")


@pytest.fixture(scope="session")
def gpt2() -> LM:
    return make("gpt2")


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 24, (2, 6)).astype(np.int32)
