from pathlib import Path

import jax
import pytest

from jaxdiff.models import LM, ModelConfig, Rope, init

GOLDEN = Path(__file__).parent / "golden"

SPECS = {
    "llama": ModelConfig(
        vocab_size=24,
        d_model=16,
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        d_mlp=24,
        rope=Rope(theta=100.0),
        attention_bias=True,
        mlp_bias=True,
        tied=False,
    ),
    "gemma2": ModelConfig(
        architecture="gemma2",
        vocab_size=24,
        d_model=16,
        n_layers=4,
        n_heads=2,
        head_dim=6,
        d_mlp=24,
        activation="gelu_tanh",
        norm_offset=1.0,
        post_norms=True,
        attention_scale=0.5,
        attention_softcap=2.0,
        logit_softcap=3.0,
        windows=(3, None, 3, None),
        embed_scale=True,
    ),
}


def _noisy(lm: LM) -> LM:
    """Moves norms and biases off their starting values and makes every part matter."""
    leaves, treedef = jax.tree.flatten(lm)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noisy = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, noisy)


@pytest.fixture(params=SPECS)
def lm(request) -> LM:
    return _noisy(init(SPECS[request.param], key=jax.random.key(0)))


@pytest.fixture
def llama() -> LM:
    return _noisy(init(SPECS["llama"], key=jax.random.key(0)))


@pytest.fixture
def gemma2() -> LM:
    return _noisy(init(SPECS["gemma2"], key=jax.random.key(0)))


@pytest.fixture
def golden() -> Path:
    return GOLDEN
