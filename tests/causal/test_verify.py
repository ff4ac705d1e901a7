"""Every site of every kind of model moves the logits; a model with a dead part is found out."""

import dataclasses

import jax.numpy as jnp
import pytest

from jaxdiff.causal import verify
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import sites


@pytest.mark.parametrize("lm", ["llama"], indirect=True)
def test_every_site_moves_the_logits(lm, clean):
    moved = verify(lm, clean)
    assert list(moved) == list(sites(lm)) and min(moved.values()) > 1e-4


def test_a_dead_part_is_named(llama, clean):
    """Without an output projection, nothing inside of attention matters."""
    blocks = dict(llama.params["blocks"])
    dead = blocks["attn"]["o"]["weight"].at[2].set(0.0)
    blocks["attn"] = {**blocks["attn"], "o": {**blocks["attn"]["o"], "weight": dead}}
    broken = dataclasses.replace(llama, params={**llama.params, "blocks": blocks})
    with pytest.raises(JaxdiffError, match="10 sites") as error:
        verify(broken, clean)
    assert "blocks.2.attn.pattern: changing it moves no logit" in error.value.what
    assert "blocks.1" not in error.value.what
    assert jnp.isfinite(dead).all()
