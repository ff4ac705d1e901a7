import jax
import numpy as np
import pytest

from jaxdiff.models import LM, ModelConfig, Rope, init

_SMALL = dict(vocab_size=24, d_model=16, n_layers=4, n_heads=4, d_mlp=24)
SPECS = {
    "llama": ModelConfig(**_SMALL, n_kv_heads=2),
    "gemma": ModelConfig(
        **_SMALL,
        head_dim=6,
        activation="gelu_tanh",
        norm_offset=1.0,
        post_norms=True,
        qk_norm="head",
        local_rope=Rope(theta=100.0),
        windows=(3, None, 3, None),
        logit_softcap=3.0,
    ),
    "neox": ModelConfig(
        **_SMALL, norm="layer", parallel=True, gated=False, attention_bias=True, mlp_bias=True
    ),
    "gpt2": ModelConfig(**_SMALL, norm="layer", rope=None, gated=False, context=16),
    "experts": ModelConfig(**_SMALL, experts=4, experts_per_token=2, normalize_experts=True),
}


def _make(name: str) -> LM:
    """A random model whose norms and biases matter too."""
    lm = init(SPECS[name], key=jax.random.key(0))
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), lm)


@pytest.fixture(scope="session", params=SPECS)
def lm(request) -> LM:
    return _make(request.param)


@pytest.fixture(scope="session")
def llama() -> LM:
    return _make("llama")


@pytest.fixture(scope="session")
def clean() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 24, (2, 7)).astype(np.int32)


@pytest.fixture(scope="session")
def corrupt() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 24, (2, 7)).astype(np.int32)
