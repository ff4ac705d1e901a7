import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.edits import Add, edit
from jaxdiff.models import LM, ModelConfig, Rope, init, run

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


def _make(name: str) -> LM:
    """A random model whose norms and biases matter too."""
    lm = init(SPECS[name], key=jax.random.key(0))
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.2, x.shape).astype(np.float32), lm)


@pytest.fixture(scope="session", params=SPECS)
def lm(request) -> LM:
    return _make(request.param)


@pytest.fixture(scope="session")
def llama() -> LM:
    return _make("llama")


@pytest.fixture(scope="session")
def gemma2() -> LM:
    return _make("gemma2")


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def site_gradients():
    """Differentiates the mean log-probability of the next tokens with respect to sites."""

    @functools.partial(
        jax.jit,
        static_argnames="wanted",
        compiler_options={"xla_backend_optimization_level": 0},
    )
    def gradients(lm, tokens, wanted):
        def score(added):
            edits = tuple(edit(site, Add(delta)) for site, delta in added.items())
            logits, _ = run(lm, tokens, edits=edits)
            log_probs = jax.nn.log_softmax(logits)[:, :-1]
            return jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1).mean()

        _, values = jax.eval_shape(lambda: run(lm, tokens, wanted, logits=False))
        return jax.grad(score)(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), values))

    return gradients


@pytest.fixture(scope="session")
def with_scales():
    """Adds the scales of norms to what a reference computed at the other sites, in float64."""

    def add(spec, found):
        found = {site: np.asarray(value) for site, value in found.items()}

        def scale(site):
            x = found[site].astype(np.float64)
            x = x - x.mean(-1, keepdims=True) if spec.norm == "layer" else x
            return 1 / np.sqrt((x * x).mean(-1, keepdims=True) + spec.norm_eps)

        norms = {"attn_norm": "attn_in", "mlp_norm": "mlp_in"} if spec.pre_norms else {}
        if spec.post_norms:
            norms |= {"attn_post_norm": "attn.out", "mlp_post_norm": "mlp.out"}
        for i in range(spec.n_layers):
            for name, read in norms.items():
                found[f"blocks.{i}.{name}.scale"] = scale(f"blocks.{i}.{read}")
        found["final_norm.scale"] = scale(f"blocks.{spec.n_layers - 1}.resid_post")
        return found

    return add
