"""What a lens is fitted on: batches of texts, and a site of all layers."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, ModelConfig, canonical_site
from jaxdiff.models._check import checked
from jaxdiff.models._run import check_like_tokens
from jaxdiff.readouts._logit_lens import check_width
from jaxdiff.types import TokenBatch

_NAMES = ("tokens", "sequences", "positions")


def texts_of(lm: LM, batch: Any, site: str) -> dict[str, Any]:
    """Returns the arguments of `models.run` that a batch has.

    Raises:
        JaxdiffError: If it has no tokens, the model cannot be read at the site, or sequences or
            positions have another shape than the tokens.
    """
    if isinstance(batch, str):
        raise JaxdiffError(
            "batches are a list of batches, not one", where="batches", fix="write [batch]"
        )
    given = vars(batch) if isinstance(batch, TokenBatch) else batch
    if not isinstance(given, Mapping) or "tokens" not in given:
        raise JaxdiffError(
            f"a batch is a TokenBatch or a mapping with tokens, not {type(batch).__name__}",
            where="batches",
            fix="one batch is given as [{'tokens': ids}]",
        )
    texts = {name: given[name] for name in _NAMES if given.get(name) is not None}
    checked(lm, (site,), (), texts["tokens"], own_positions="positions" in texts)
    check_like_tokens(texts["tokens"], texts.get("sequences"), texts.get("positions"))
    if "positions" in texts:
        # Batches are cut into rows.
        texts["positions"] = jnp.broadcast_to(texts["positions"], texts["tokens"].shape)
    return texts


def check_layers(spec: ModelConfig, site: str) -> None:
    """Refuses a site that is not one of all blocks, as wide as the stream."""
    check_width(spec, site)
    if not canonical_site(spec, site).startswith("blocks.*."):
        raise JaxdiffError(
            "a lens is fitted to all layers", where=site, fix="name the site blocks.*.…"
        )
