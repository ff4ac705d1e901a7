"""How a latent's decoder is shared between two models."""

import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.types import BASE, FT

CLASSES = ("ft_only", "base_only", "shared", "other", "dead")


def relative_norm(
    norms: Float[Array | np.ndarray, "L 2"],
) -> Float[np.ndarray, " L"]:
    """Computes where each latent lies between the two models (arXiv:2504.02922, equation 3).

    relative_norm = (1 + (|d_ft| - |d_base|) / max(|d_ft|, |d_base|)) / 2: 0 is base only, 1/2
    shared, 1 fine-tuned only. A concept with gain g in the base and 1 in the fine-tuned model is
    at 1 - g/2.

    Args:
        norms: Decoder norms of base and fine-tuned model.

    Returns:
        Values in [0, 1]; NaN where both norms are 0.
    """
    both = np.asarray(norms, np.float64)
    largest = both.max(axis=1)
    safe = np.where(largest > 0, largest, np.nan)
    return 0.5 * (1 + (both[:, FT] - both[:, BASE]) / safe)


def classes(relative: Float[np.ndarray, " L"], alive: np.ndarray | None = None) -> np.ndarray:
    """Names the paper's intervals: ft_only, base_only, shared, other; dead where not alive.

    Args:
        relative: `relative_norm` of each latent.
        alive: Latents that fired; all when None.

    Returns:
        Names, an array of strings.
    """
    named = np.select(
        [relative >= 0.9, relative <= 0.1, (relative >= 0.4) & (relative <= 0.6)],
        ["ft_only", "base_only", "shared"],
        default="other",
    )
    return named if alive is None else np.where(alive, named, "dead")


def sides(norms: Float[Array | np.ndarray, "L 2"]) -> Int[np.ndarray, " L"]:
    """Returns the model with the larger decoder, to which a latent belongs; a tie goes to ft."""
    both = np.asarray(norms)
    return np.where(both[:, BASE] > both[:, FT], BASE, FT).astype(np.int32)


def cosine(decoder: Float[Array | np.ndarray, "L 2 D"]) -> Float[np.ndarray, " L"]:
    """Computes the cosine between the two decoders of each latent; NaN where one is zero."""
    base, ft = (np.asarray(decoder[:, m], np.float64) for m in (BASE, FT))
    product = np.linalg.norm(base, axis=1) * np.linalg.norm(ft, axis=1)
    return (base * ft).sum(axis=1) / np.where(product > 0, product, np.nan)
