"""Latents in context: the tokens around the rows on which they fire most strongly."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.dictionaries import Dictionary
from jaxdiff.progress import progress
from jaxdiff.stats import Rows, StrongestRows, encode, pad
from jaxdiff.types import ActivationBatch

# Latents that examples are shown of; a page with more than this is not read.
MOST_LATENTS = 2000


@dataclass(frozen=True)
class Example:
    """One place where a latent fires.

    Attributes:
        sequence: Document.
        at: Index of the strongest token in the window.
        value: Scaled value there.
        tokens: Token ids of the window.
        roles: Their roles.
        values: Scaled values of the latent on them; 0 on masked ones.
    """

    sequence: int
    at: int
    value: float
    tokens: Int[np.ndarray, " W"]
    roles: Int[np.ndarray, " W"]
    values: Float[np.ndarray, " W"]


def choose_latents(
    alive: Bool[np.ndarray, " L"], special: Bool[np.ndarray, " L"], *, seed: int
) -> Int[np.ndarray, " n"]:
    """Chooses the latents to show: all that are alive, up to `MOST_LATENTS`.

    Args:
        alive: Latents that fired.
        special: Those to keep first (one-sided, or with a verdict that says so).
        seed: Decides which of the others fill the rest.

    Returns:
        Latents in rising order.
    """
    order = np.random.default_rng(seed).permutation(len(alive))
    order = order[alive[order]]
    order = order[np.argsort(~special[order], kind="stable")]
    return np.sort(order[:MOST_LATENTS])


def collect(
    store: Rows,
    dictionary: Dictionary,
    strongest: StrongestRows,
    latents: Int[np.ndarray, " n"],
    *,
    mean: Float[Array | np.ndarray, "M D"],
    scale: Float[Array | np.ndarray, " M"],
    window: int,
    batch: int,
) -> dict[int, tuple[Example, ...]]:
    """Reads and encodes the rows around the strongest ones, and only those.

    Args:
        store: The activations of the pass in which `strongest` was found.
        dictionary: The dictionary of that pass.
        strongest: Strongest rows of every latent.
        latents: Latents to collect.
        mean: Mean of each model's activations.
        scale: Factor to the dictionary's space.
        window: Tokens on each side, cut at the ends of the document [tokens].
        batch: Rows encoded at once.

    Returns:
        Examples of each latent, strongest first.
    """
    keep = strongest.rows[latents]
    which, place = np.nonzero(keep >= 0)
    centers, owners = keep[which, place].astype(np.int64), latents[which]
    offsets = np.arange(-window, window + 1)
    rows = centers[:, None] + offsets[None]
    inside = (rows >= 0) & (rows < store.rows)
    found = _Windows(rows.shape)
    needed = np.unique(rows[inside])
    with progress("examples", len(needed), "tokens") as advance:
        for start in range(0, len(needed), batch):
            part = needed[start : start + batch]
            block = _read(store, part)
            pick = inside & (rows >= part[0]) & (rows <= part[-1])
            local = np.searchsorted(part, rows[pick])
            latent = np.broadcast_to(owners[:, None], rows.shape)[pick]
            found.put(
                pick,
                local,
                block,
                _values(dictionary, pad(block, batch), local, latent, mean=mean, scale=scale),
            )
            advance(len(part))
    examples: dict[int, list[Example]] = {int(latent): [] for latent in latents}
    for i, owner in enumerate(owners):
        examples[int(owner)].append(found.example(i, inside[i], window))
    return {latent: tuple(items) for latent, items in examples.items()}


class _Windows:
    """Tokens, roles, documents and values of all windows, filled block by block."""

    def __init__(self, shape: tuple[int, int]):
        self.tokens, self.roles = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self.sequences, self.values = np.full(shape, -1, np.int64), np.zeros(shape)

    def put(self, pick: np.ndarray, local: np.ndarray, block: ActivationBatch, values: np.ndarray):
        self.tokens[pick] = np.asarray(block.tokens)[local]
        self.roles[pick] = np.asarray(block.roles)[local]
        self.sequences[pick] = np.asarray(block.sequences)[local]
        self.values[pick] = values

    def example(self, i: int, inside: np.ndarray, window: int) -> Example:
        sequence = self.sequences[i, window]
        same = inside & (self.sequences[i] == sequence)
        # Only the unbroken stretch around the strongest token.
        left = window - np.argmin(np.append(same[:window][::-1], False))
        right = window + 1 + np.argmin(np.append(same[window + 1 :], False))
        part = slice(left, right)
        return Example(
            sequence=int(sequence),
            at=int(window - left),
            value=float(self.values[i, window]),
            tokens=self.tokens[i, part],
            roles=self.roles[i, part],
            values=self.values[i, part],
        )


def _read(store: Rows, rows: np.ndarray) -> ActivationBatch:
    """Reads rows, given in rising order, a stretch without gaps at a time."""
    gaps = np.flatnonzero(np.diff(rows) > 1) + 1
    parts = [store.read(int(p[0]), int(p[-1]) + 1) for p in np.split(rows, gaps)]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _values(
    dictionary: Dictionary,
    block: ActivationBatch,
    rows: np.ndarray,
    latents: np.ndarray,
    *,
    mean,
    scale,
) -> np.ndarray:
    # A power of two, so that few programs are compiled.
    size = 1 << max(int(len(rows) - 1).bit_length(), 8)
    fill = lambda a: jnp.asarray(np.pad(a.astype(np.int32), (0, size - len(a))))  # noqa: E731
    picked = _pick(
        dictionary, block, fill(rows), fill(latents), jnp.asarray(mean), jnp.asarray(scale)
    )
    return np.asarray(picked, np.float64)[: len(rows)]


@jax.jit
def _pick(dictionary, block, rows, latents, mean, scale):
    order = jnp.arange(len(block.mask), dtype=jnp.int32)
    return encode(dictionary, block, order, mean=mean, scale=scale).v[rows, latents]
