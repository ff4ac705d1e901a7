"""Latent Scaling: is a latent's concept really absent from the other model?

Section 3.2 of arXiv:2504.02922. Let d_j be the decoder of latent j in the model where it is larger
(the latent's own side; the fine-tuned model in the paper) and f_j its value there. beta^m says how
much of d_j model m's target contains when the latent fires, and nu = beta^other / beta^own:

* nu^r, target xhat^m: other latents rebuild the same direction on the other side (decoupling).
* nu^eps, target x^m - xhat^m + f_j d_j^m: the other side's error still holds it (shrinkage).

Both include what the latent's own decoder on the other side writes. They are measured in the
dictionary's (normalised) space; in raw space both are multiplied by scale_own / scale_other.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxdiff.diffing.norms import sides
from jaxdiff.stats.scaling import Scaling, ScalingSums

# A latent that explains less of its own side than this part of what it writes there has no
# meaningful ratio: the denominator is noise.
_SMALLEST_BETA = 0.02


@dataclass(frozen=True)
class LatentScaling:
    """Latent Scaling of every latent; NaN where a number is not defined.

    Attributes:
        side: The model that each latent belongs to.
        beta_reconstruction: beta of xhat for each model.
        beta_error: beta of the error with the latent put back.
        beta_activation: beta of the activation itself.
        nu_reconstruction: nu^r with the ends of its interval.
        nu_error: nu^eps with the ends of its interval.
        put_back: The part of nu^eps that the latent's own decoder on the other side accounts for.
        sequences: Effective number of sequences behind the numbers (Kish): few means that one or
            two documents carry the latent, and its interval says little.
        reason: Why nu is not defined; empty where it is.
    """

    side: Int[np.ndarray, " L"]
    beta_reconstruction: Float[np.ndarray, "L M"]
    beta_error: Float[np.ndarray, "L M"]
    beta_activation: Float[np.ndarray, "L M"]
    nu_reconstruction: Float[np.ndarray, "L 3"]
    nu_error: Float[np.ndarray, "L 3"]
    put_back: Float[np.ndarray, " L"]
    sequences: Float[np.ndarray, " L"]
    reason: np.ndarray


def scaling_statistic(
    decoder: Float[Array, "L 2 D"], *, resamples: int, key: Key[Array, ""]
) -> Scaling:
    """Prepares the pass: each latent's own side, direction and overlaps.

    Args:
        decoder: Decoder rows of both models.
        resamples: Bootstrap resamples of the sequences.
        key: Fixes the resamples.

    Returns:
        The statistic to fold over the activations.
    """
    decoder = jnp.asarray(decoder, jnp.float32)
    own = jnp.asarray(sides(jnp.linalg.norm(decoder, axis=-1)))
    direction = jnp.take_along_axis(decoder, own[:, None, None], axis=1)[:, 0]
    overlap = jnp.einsum("ld,lmd->lm", direction, decoder, precision="highest")
    return Scaling(direction, own, overlap, key, resamples)


def latent_scaling(
    statistic: Scaling, sums: ScalingSums, *, confidence: float = 0.95
) -> LatentScaling:
    """Turns the sums of a pass into betas, nus and bootstrap intervals.

    Args:
        statistic: What was folded.
        sums: Its result.
        confidence: Level of the percentile intervals [fraction].

    Returns:
        Latent Scaling of every latent.
    """
    own = np.asarray(statistic.own)
    squared = np.asarray(statistic.direction, np.float64)
    squared = (squared * squared).sum(axis=1)
    energy = squared * sums.squares  # what the latent writes on its own side, squared
    safe = np.where(energy > 0, energy, np.nan)
    beta_r, beta_e = sums.reconstruction.T / safe[:, None], sums.error.T / safe[:, None]

    r = _Ratio.of(sums.reconstruction, sums.resampled_reconstruction, own)
    e = _Ratio.of(sums.error, sums.resampled_error, own)
    reason = _reasons(energy, beta_r, beta_e, r, e, own)
    defined = (reason == "")[:, None]
    written_there = sums.written[1 - own, np.arange(len(own))]
    return LatentScaling(
        side=own,
        beta_reconstruction=beta_r,
        beta_error=beta_e,
        beta_activation=beta_r + beta_e - sums.written.T / safe[:, None],
        nu_reconstruction=np.where(defined, r.interval(confidence), np.nan),
        nu_error=np.where(defined, e.interval(confidence), np.nan),
        put_back=np.where(defined[:, 0], written_there / e.own_safe, np.nan),
        sequences=r.effective_sequences(),
        reason=reason,
    )


@dataclass(frozen=True)
class _Ratio:
    """Numerators and denominators of nu: the sum over all rows, and under each resample."""

    other: np.ndarray  # [L]
    own: np.ndarray
    others: np.ndarray  # [S, L]
    owns: np.ndarray

    @classmethod
    def of(cls, sums: np.ndarray, resampled: np.ndarray, own: np.ndarray) -> "_Ratio":
        latents = np.arange(len(own))
        return cls(
            sums[1 - own, latents],
            sums[own, latents],
            resampled[:, 1 - own, latents],
            resampled[:, own, latents],
        )

    @property
    def own_safe(self) -> np.ndarray:
        return np.where(self.own > 0, self.own, np.nan)

    def interval(self, confidence: float) -> np.ndarray:
        """Returns value, low and high [L, 3]; resamples without the latent are left out."""
        ratios = self.others / np.where(self.owns > 0, self.owns, np.nan)
        tail = (1 - confidence) / 2
        empty = np.isnan(ratios).all(axis=0)
        low, high = np.nanquantile(np.where(empty, 0.0, ratios), [tail, 1 - tail], axis=0)
        nan = np.where(empty, np.nan, 0.0)
        return np.stack([self.other / self.own_safe, low + nan, high + nan], axis=1)

    def effective_sequences(self) -> np.ndarray:
        """Returns (sum c)^2 / sum c^2 over sequences, read off the spread of the resamples.

        Under Poisson weights the resampled sum has mean sum c and variance sum c^2.
        """
        variance = self.owns.var(axis=0, ddof=1)
        return np.where(variance > 0, self.own**2 / np.where(variance > 0, variance, 1.0), 0.0)


def _reasons(energy, beta_r, beta_e, r: _Ratio, e: _Ratio, own: np.ndarray) -> np.ndarray:
    latents = np.arange(len(own))
    weak_r = ~(beta_r[latents, own] > _SMALLEST_BETA)
    weak_e = ~(beta_e[latents, own] > _SMALLEST_BETA)
    # A denominator that is often 0 or negative under resampling has no ratio worth an interval.
    unsure = ((r.owns <= 0) | (e.owns <= 0)).mean(axis=0) > 0.5
    return np.select(
        [~(energy > 0), weak_r, weak_e, unsure],
        [
            "never fires",
            "its own side's reconstruction does not contain it",
            "its own side's error with the latent put back does not contain it",
            "its own side contains it in less than half of the resamples",
        ],
        default="",
    )
