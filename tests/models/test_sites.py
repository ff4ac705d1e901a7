import jax
import jax.numpy as jnp
import pytest

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import canonical_site, run, sites


def test_every_site_has_the_shape_it_says(lm):
    tokens = jnp.zeros((2, 3), jnp.int32)
    _, found = jax.eval_shape(lambda: run(lm, tokens, tuple(sites(lm)), logits=False))
    sizes = {"B": 2, "T": 3, "S": 3}
    for site, shape in sites(lm).items():
        assert found[site].shape == tuple(sizes.get(axis, axis) for axis in shape), site
    assert set(found) == set(sites(lm))
    assert sites(lm) == sites(lm.spec)
    assert all(canonical_site(lm.spec, site) == site for site in sites(lm))


@pytest.mark.parametrize(
    ("alias", "site"),
    [
        ("hook_embed", "embed"),
        ("model.embed_tokens", "embed"),
        ("token_embeddings", "embed"),
        ("blocks.3.hook_resid_post", "blocks.3.resid_post"),
        ("blocks.0.hook_resid_pre", "blocks.0.resid_pre"),
        ("blocks.2.hook_resid_mid", "blocks.2.resid_mid"),
        ("blocks.2.hook_attn_out", "blocks.2.attn_out"),
        ("blocks.2.hook_mlp_out", "blocks.2.mlp_out"),
        ("blocks.2.hook_in", "blocks.2.resid_pre"),
        ("blocks.2.hook_out", "blocks.2.resid_post"),
        ("model.layers.3", "blocks.3.resid_post"),
        ("layers.3", "blocks.3.resid_post"),
        ("layers_output[3]", "blocks.3.resid_post"),
        ("layers_input[3]", "blocks.3.resid_pre"),
        ("model.norm", "final_norm"),
        ("ln_final", "final_norm"),
    ],
)
def test_aliases(lm, alias, site):
    assert canonical_site(lm.spec, alias) == site


def test_names_of_modules_are_of_what_they_return(llama, gemma2):
    """Where a norm follows, the raw output is not what is added to the stream."""
    for alias, part in {
        "model.layers.1.self_attn": "attn",
        "attentions_output[1]": "attn",
        "model.layers.1.mlp": "mlp",
        "mlps_output[1]": "mlp",
    }.items():
        assert canonical_site(llama.spec, alias) == f"blocks.1.{part}_out"
        assert canonical_site(gemma2.spec, alias) == f"blocks.1.{part}.out"
    post = "model.layers.1.post_attention_layernorm"
    assert canonical_site(gemma2.spec, post) == "blocks.1.attn_out"
    assert canonical_site(llama.spec, post) == "blocks.1.mlp.in"
    assert canonical_site(llama.spec, "lm_head") == "logits"
    with pytest.raises(JaxdiffError):
        canonical_site(gemma2.spec, "lm_head")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("blocks.1.resid_pots", "blocks.1.resid_post"),
        ("block.2.mlp_out", "blocks.2.mlp_out"),
        ("blocks.4.resid_post", "blocks.0 to blocks.3"),
        ("model.layers.17", "blocks.0 to blocks.3"),
        ("finalnorm", "final_norm"),
        ("", "embed"),
    ],
)
def test_wrong_names_are_refused_with_near_ones(llama, wrong, near):
    with pytest.raises(JaxdiffError) as error:
        canonical_site(llama.spec, wrong)
    assert repr(wrong) in error.value.what and near in error.value.fix
