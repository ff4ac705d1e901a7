"""Where two models differ on the same tokens, measured while both run: no activations are kept."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, At, Between, canonical_site, run_together, sites
from jaxdiff.types import BASE, FT, HostOrDevice

_reducer = jax.tree_util.register_dataclass


class Comparison(NamedTuple):
    """What two models differ in, in float32; sites have a leading axis N where they are `*` sites.

    All of it is NaN at padding, so that it is not averaged over by mistake: use `jnp.nanmean`.

    Attributes:
        kl: KL(ft || base) of the predictions after each token [nats].
        cosine: Cosine of the angle between the models' values, by site.
        distance: Norm of their difference, relative to the norm of the base's value, by site.
    """

    kl: Float[Array, "B T"]
    cosine: dict[str, Float[Array, "*N B T"]]
    distance: dict[str, Float[Array, "*N B T"]]


def compare(
    base: LM,
    ft: LM,
    tokens: Int[HostOrDevice, "B T"],
    at: tuple[str, ...] = ("blocks.*.resid_post",),
    *,
    sequences: Int[HostOrDevice, "B T"] | None = None,
) -> Comparison:
    """Compares two models token by token and site by site, in one program.

        diff = compare(base, ft, tokens)
        diff.kl.mean(), diff.cosine["blocks.*.resid_post"].mean((1, 2))     # [], [N]

    Args:
        base: The model that was fine-tuned.
        ft: The fine-tuned model, with as many blocks and the same vocabulary.
        tokens: What both read.
        at: Sites whose values are vectors; all but the first two axes are flattened.
        sequences: Document of each token, as in `models.run`.

    Raises:
        JaxdiffError: If the models' values at a site differ in shape, or are no vectors.
    """
    if isinstance(at, str):
        raise JaxdiffError("sites are a tuple", where="compare: at", fix=f"at=({at!r},)")
    for site in at:
        _check_site(base, ft, site)
    between = (
        Between("logits", Divergence(), name="kl"),
        *(Between(site, Similarity(), name=site) for site in at),
    )
    found = run_together(
        (base, ft), tokens, between=between, sequences=sequences, logits=False
    ).between
    if sequences is not None:
        padding = jnp.asarray(sequences) < 0
        found = jax.tree.map(lambda x: jnp.where(_as_wide(padding, x), jnp.nan, x), found)
    return Comparison(
        kl=found["kl"],
        cosine={site: found[site][0] for site in at},
        distance={site: found[site][1] for site in at},
    )


def _as_wide(mask: Bool[Array, "B T"], x: Float[Array, "*N B T"]) -> Bool[Array, "*#N B T"]:
    return mask.reshape(*(1,) * (x.ndim - 2), *mask.shape)


@_reducer
@dataclass(frozen=True)
class Divergence:
    """Between two models' logits: `KL(ft || base)` at each position, `[B, T]` [nats]."""

    def __call__(self, values: tuple[Array, ...], at: At) -> Float[Array, "B T"]:
        """Returns it, from log-probabilities in float32."""
        base, ft = (jax.nn.log_softmax(values[m].astype(jnp.float32), -1) for m in (BASE, FT))
        return jnp.sum(jnp.exp(ft) * (ft - base), axis=-1)


@_reducer
@dataclass(frozen=True)
class Similarity:
    """Between two models' values: their cosine, and their relative distance, `[B, T]` each."""

    def __call__(
        self, values: tuple[Array, ...], at: At
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """Returns both; a value of norm 0 has cosine 0 and an infinite distance to all others."""
        base, ft = (
            values[m].astype(jnp.float32).reshape(*values[m].shape[:2], -1) for m in (BASE, FT)
        )
        norms = jnp.linalg.norm(base, axis=-1) * jnp.linalg.norm(ft, axis=-1)
        dot = jnp.sum(base * ft, axis=-1)
        cosine = jnp.where(norms > 0, dot / jnp.where(norms > 0, norms, 1.0), 0.0)
        distance = jnp.linalg.norm(ft - base, axis=-1)
        relative = distance / jnp.linalg.norm(base, axis=-1)
        return cosine, jnp.where(distance == 0, 0.0, relative)


def _check_site(base: LM, ft: LM, site: str) -> None:
    shapes = [
        sites(lm)[canonical_site(lm.spec, site).replace(".*.", ".0.", 1)] for lm in (base, ft)
    ]
    if shapes[0] != shapes[1] or shapes[0][:2] != ("B", "T"):
        given = " and ".join(str(list(shape)) for shape in shapes)
        raise JaxdiffError(
            f"the models' values cannot be compared at this site: {given}",
            where=site,
            fix="compare sites with axes B, T, ... that both models have in the same shape",
        )
