"""Area under the ROC curve of sparse, non-negative values, for every latent and label at once."""

import numpy as np
from jaxtyping import Bool, Float, Int


def auroc(
    values: Float[np.ndarray, "R L"], positive: Bool[np.ndarray, " R"]
) -> Float[np.ndarray, " L"]:
    """Computes how well each column separates the positive rows from the others.

    Args:
        values: Non-negative values.
        positive: Rows to be found.

    Returns:
        Probability that a positive row has a larger value than another row, ties counted half; NaN
        without a positive or without another row.
    """
    rows, latents = np.nonzero(values)
    label = np.asarray(positive).astype(np.int64)
    counts = np.bincount(label, minlength=2)
    return sparse_auroc(latents, values[rows, latents], label[rows], counts, values.shape[1])[1]


def sparse_auroc(
    latents: Int[np.ndarray, " n"],
    values: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    counts: Int[np.ndarray, " C"],
    total: int,
) -> Float[np.ndarray, "C L"]:
    """Computes the AUROC of every latent for every label against all other rows, exactly.

    This is the Mann-Whitney statistic with mid-ranks. Only entries above 0 are sorted: all zeros of
    a latent tie, and lie below the rest.

    Args:
        latents: Latent of each entry above 0.
        values: Its value.
        labels: Label of its row, in [0, C).
        counts: Rows of each label, those without an entry included.
        total: Number of latents L.

    Returns:
        AUROC; NaN for a label that no row or every row has.
    """
    order = np.lexsort((values, latents))
    latents, values, labels = latents[order], values[order], labels[order]
    entries = np.bincount(latents, minlength=total)
    rows = counts.sum()
    zeros = rows - entries
    ranks = zeros[latents] + _midranks(latents, values, entries)

    cell = labels * total + latents
    shape = (len(counts), total)
    above = np.bincount(cell, minlength=shape[0] * total).reshape(shape)
    rank_sum = np.bincount(cell, weights=ranks, minlength=shape[0] * total).reshape(shape)
    rank_sum = rank_sum + (counts[:, None] - above) * ((zeros + 1) / 2)[None]
    n = counts[:, None].astype(np.float64)
    pairs = n * (rows - n)
    return (rank_sum - n * (n + 1) / 2) / np.where(pairs > 0, pairs, np.nan)


def _midranks(latents: np.ndarray, values: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Returns 1-based ranks inside each latent, ties averaged; input sorted by latent and value."""
    if not len(latents):
        return np.zeros(0)
    new = np.ones(len(latents), bool)
    new[1:] = (latents[1:] != latents[:-1]) | (values[1:] != values[:-1])
    start = np.flatnonzero(new)
    end = np.append(start[1:], len(latents))
    middle = (start + end + 1) / 2
    first = np.cumsum(entries) - entries
    return middle[np.cumsum(new) - 1] - first[latents]
