import jax
import jax.numpy as jnp
import pytest

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import canonical_site, run, sites


def test_every_site_has_the_shape_it_says(lm):
    tokens = jnp.zeros((2, 3), jnp.int32)
    _, found = jax.eval_shape(lambda: run(lm, tokens, tuple(sites(lm)), logits=False))
    assert {site: value.shape[2:] for site, value in found.items()} == sites(lm)
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


def test_raw_outputs_are_aliases_only_where_nothing_follows(llama, gemma2):
    for alias, site in {
        "model.layers.1.self_attn": "blocks.1.attn_out",
        "attentions_output[1]": "blocks.1.attn_out",
        "model.layers.1.mlp": "blocks.1.mlp_out",
        "mlps_output[1]": "blocks.1.mlp_out",
        "lm_head": "logits",
    }.items():
        assert canonical_site(llama.spec, alias) == site
        with pytest.raises(JaxdiffError):
            canonical_site(gemma2.spec, alias)
    post = "model.layers.1.post_attention_layernorm"
    assert canonical_site(gemma2.spec, post) == "blocks.1.attn_out"
    with pytest.raises(JaxdiffError):
        canonical_site(llama.spec, post)


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
