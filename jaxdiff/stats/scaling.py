"""The sums behind Latent Scaling (arXiv:2504.02922, section 3.2), for all latents in one pass.

Latent Scaling asks how much of latent j's direction d_j is in a target y of each model when the
latent fires: beta = argmin sum_i |beta f_j(x_i) d_j - y_i|^2 = <d_j, sum_i f_ij y_i> /
(|d_j|^2 sum_i f_ij^2). Only the scalar <d_j, y_i> enters, so one matrix product [R, D] x [D, L] for
each target gives all latents, and nothing of size L x D is accumulated.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxdiff.stats import compensated
from jaxdiff.stats.compensated import Sum
from jaxdiff.stats.encoded import Encoded

# P(X <= k) of a Poisson variable with mean 1, for k = 0..9; beyond lies 1e-7.
_POISSON = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, *range(1, 10)])).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScalingState:
    """Running sums over rows; f^m is the latent in model m, f on its own side, d the direction.

    Attributes:
        squares: Sum of f^2.
        written: Sum of f <d, f^m d^m>: what the latent's own decoder writes to each model.
        reconstruction: Sum of f <d, xhat^m>.
        error: Sum of f <d, x^m - xhat^m + f^m d^m>: the error with the latent put back.
        resampled_reconstruction: `reconstruction` under each resample of the sequences.
        resampled_error: `error` under each resample.
    """

    squares: Sum
    written: Sum
    reconstruction: Sum
    error: Sum
    resampled_reconstruction: Float[Array, "S M L"]
    resampled_error: Float[Array, "S M L"]


@dataclass(frozen=True)
class ScalingSums:
    """`ScalingState` on the host in float64."""

    squares: Float[np.ndarray, " L"]
    written: Float[np.ndarray, "M L"]
    reconstruction: Float[np.ndarray, "M L"]
    error: Float[np.ndarray, "M L"]
    resampled_reconstruction: Float[np.ndarray, "S M L"]
    resampled_error: Float[np.ndarray, "S M L"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scaling:
    """Statistic: the sums of Latent Scaling with bootstrap resamples of whole sequences.

    Attributes:
        direction: d_j, the decoder of the model that latent j belongs to.
        own: That model's index.
        overlap: <d_j, d_j^m> for each model.
        key: Fixes the resamples.
        resamples: How many.
    """

    direction: Float[Array, "L D"]
    own: Int[Array, " L"]
    overlap: Float[Array, "L M"]
    key: Key[Array, ""]
    resamples: int = field(metadata={"static": True})

    def init(self) -> ScalingState:
        """Returns empty sums."""
        latents, models = self.overlap.shape
        resampled = jnp.zeros((self.resamples, models, latents), jnp.float32)
        return ScalingState(
            squares=compensated.zero(latents),
            written=compensated.zero(models, latents),
            reconstruction=compensated.zero(models, latents),
            error=compensated.zero(models, latents),
            resampled_reconstruction=resampled,
            resampled_error=resampled,
        )

    def update(self, state: ScalingState, batch: Encoded) -> ScalingState:
        """Adds a batch."""
        f = own_codes(batch.f, self.own)
        weights = resample_weights(batch.sequences, self.resamples, key=self.key)
        project = lambda y: jnp.matmul(y, self.direction.T, precision="highest")  # noqa: E731
        resample = lambda c: jnp.matmul(weights, c, precision="highest")  # noqa: E731
        written, reconstruction, error, many_reconstruction, many_error = [], [], [], [], []
        for model in range(self.overlap.shape[1]):
            xhat = batch.reconstruction[:, model]
            w = f * codes_of(batch.f, model) * self.overlap[None, :, model]
            r = f * project(xhat)
            e = f * project(batch.x[:, model] - xhat) + w
            written.append(w.sum(axis=0))
            reconstruction.append(r.sum(axis=0))
            error.append(e.sum(axis=0))
            many_reconstruction.append(resample(r))
            many_error.append(resample(e))
        stack = lambda parts: jnp.stack(parts, axis=-2)  # noqa: E731
        # The resampled sums only set the ends of intervals: plain float32 is enough for those.
        return ScalingState(
            squares=compensated.add(state.squares, (f * f).sum(axis=0)),
            written=compensated.add(state.written, stack(written)),
            reconstruction=compensated.add(state.reconstruction, stack(reconstruction)),
            error=compensated.add(state.error, stack(error)),
            resampled_reconstruction=state.resampled_reconstruction + stack(many_reconstruction),
            resampled_error=state.resampled_error + stack(many_error),
        )

    def merge(self, a: ScalingState, b: ScalingState) -> ScalingState:
        """Joins the sums of two shards of the rows."""
        return ScalingState(
            squares=compensated.merge(a.squares, b.squares),
            written=compensated.merge(a.written, b.written),
            reconstruction=compensated.merge(a.reconstruction, b.reconstruction),
            error=compensated.merge(a.error, b.error),
            resampled_reconstruction=a.resampled_reconstruction + b.resampled_reconstruction,
            resampled_error=a.resampled_error + b.resampled_error,
        )

    def finalize(self, state: ScalingState) -> ScalingSums:
        """Brings the sums to the host."""
        return ScalingSums(
            squares=compensated.value(state.squares),
            written=compensated.value(state.written),
            reconstruction=compensated.value(state.reconstruction),
            error=compensated.value(state.error),
            resampled_reconstruction=np.asarray(state.resampled_reconstruction, np.float64),
            resampled_error=np.asarray(state.resampled_error, np.float64),
        )


def own_codes(f: Float[Array, "R *ML"], own: Int[Array, " L"]) -> Float[Array, "R L"]:
    """Returns each latent's value on its own side; all sides share it unless f is decoupled."""
    if f.ndim == 2:
        return f
    return jnp.take_along_axis(f, own[None, None, :], axis=1)[:, 0]


def codes_of(f: Float[Array, "R *ML"], model: int) -> Float[Array, "R L"]:
    """Returns each latent's value in one model."""
    return f if f.ndim == 2 else f[:, model]


def resample_weights(
    sequences: Int[Array, " R"], resamples: int, *, key: Key[Array, ""]
) -> Float[Array, "S R"]:
    """Draws how often each bootstrap resample contains the sequence of each row.

    The counts are independent Poisson variables with mean 1 (the Poisson bootstrap), made from the
    sequence's index and the key alone. So every row of a sequence gets the same count, in whatever
    batch, shard or order it comes, and nothing is stored.

    Args:
        sequences: Document of each row.
        resamples: Number of resamples S.
        key: Fixes the resamples.

    Returns:
        The counts, as float32.
    """
    draw = lambda s: jax.random.uniform(jax.random.fold_in(key, s), (resamples,))  # noqa: E731
    uniform = jax.vmap(draw)(sequences)
    counts = sum((uniform > edge).astype(jnp.float32) for edge in _POISSON)
    return jnp.asarray(counts).T
