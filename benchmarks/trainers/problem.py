"""What every side is given: weights, rows, and the loss of the first step."""

from typing import NamedTuple

import numpy as np


class Shape(NamedTuple):
    """Sizes of a step.

    Attributes:
        batch: Rows, B.
        models: Models, M.
        width: Width of each, D.
        latents: Latents, L.
        k: Active latents a row.
    """

    batch: int
    models: int
    width: int
    latents: int
    k: int


SHAPES = {
    "tiny": Shape(64, 2, 16, 256, 8),
    "C0": Shape(256, 2, 128, 4096, 16),
    "C1": Shape(512, 1, 512, 8192, 32),
    "C2": Shape(1024, 1, 1024, 16_384, 32),
    "C3": Shape(1024, 2, 768, 24_576, 64),
    "G1": Shape(4096, 1, 2304, 65_536, 64),
    "G2": Shape(4096, 2, 2304, 73_728, 100),
    "G3": Shape(8192, 2, 2304, 131_072, 64),
}


class Problem(NamedTuple):
    """Inputs of a benchmark.

    Attributes:
        shape: Sizes.
        rows: Batches, [N, B, M D]; sparse mixtures whose directions fire about as 1 / rank.
        encoder: Encoder, [M D, L].
        decoder: Decoder, its rows of norm 1, [L, M D].
        first_loss: Squared error of the first batch, summed over widths and averaged over rows.
        first_loss_by_row: The same where each row keeps its k largest, for TopK.
        rate: Learning rate.
    """

    shape: Shape
    rows: np.ndarray
    encoder: np.ndarray
    decoder: np.ndarray
    first_loss: float
    first_loss_by_row: float
    rate: float = 1e-4

    @property
    def parameters(self) -> int:
        """Entries of both matrices."""
        return 2 * self.encoder.size

    @property
    def copied_bytes(self) -> int:
        """Bytes that `Copy` reads and writes."""
        return 2 * self.encoder.nbytes


def make_problem(name: str, batches: int = 4) -> Problem:
    """Draws weights and rows, the same in every call."""
    shape = SHAPES[name]
    rng = np.random.default_rng(0)
    width = shape.models * shape.width
    decoder = rng.standard_normal((shape.latents, width), np.float32)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    # The true directions are among the decoder's: the first are the most frequent ones.
    used = min(shape.latents, 4 * width)
    odds = np.minimum(1.0, shape.k / (1.0 + np.arange(used)))
    fires = rng.random((batches, shape.batch, used)) < odds
    values = np.where(fires, rng.exponential(size=fires.shape), 0).astype(np.float32)
    noise = 0.05 * rng.standard_normal((batches, shape.batch, width), np.float32)
    rows = values @ decoder[rng.permutation(shape.latents)[:used]] + noise
    encoder = np.ascontiguousarray(decoder.T)
    codes = np.maximum(rows[0] @ encoder, 0)
    losses = (
        _first_loss(rows[0], decoder, _largest(some, n).reshape(codes.shape))
        for some, n in ((codes.reshape(1, -1), shape.k * shape.batch), (codes, shape.k))
    )
    return Problem(shape, rows, encoder, decoder, *losses)


def _largest(codes: np.ndarray, n: int) -> np.ndarray:
    """Returns each row's n largest codes and 0 elsewhere, by sorting."""
    kept = np.zeros_like(codes)
    places = np.argpartition(-codes, n, axis=1)[:, :n]
    np.put_along_axis(kept, places, np.take_along_axis(codes, places, axis=1), axis=1)
    return kept


def _first_loss(x: np.ndarray, decoder: np.ndarray, codes: np.ndarray) -> float:
    """Returns the first loss; the decoder's rows have norm 1 and rank nothing."""
    error = x - codes @ decoder
    return float(np.mean(np.sum(error.astype(np.float64) ** 2, axis=1)))


class Copy:
    """A copy of memory, which says what a byte costs."""

    def __init__(self, problem: Problem):
        self._source, self._target = problem.encoder, np.empty_like(problem.encoder)

    def first(self) -> float:
        """Copies once."""
        self.step(0)
        return 0.0

    def step(self, _: int) -> None:
        """Copies the encoder."""
        np.copyto(self._target, self._source)
