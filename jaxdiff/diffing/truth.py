"""Which latent, if any, stands for a behaviour that is known to be there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.diffing.auroc import sparse_auroc
from jaxdiff.errors import JaxdiffError
from jaxdiff.types import ActivationBatch, Role

# Entries above 0 that are held at once [entries, 11 bytes each]; labelled data is small.
_LARGEST = 1 << 28


@dataclass(frozen=True)
class Behaviour:
    """A planted difference.

    Attributes:
        id: Label of the tokens on which it is active; above 0.
        name: Short name.
        kind: new: the base does not have it. gain: the base has it, more weakly or strongly.
        description: One sentence.
    """

    id: int
    name: str
    kind: Literal["new", "gain"] = "new"
    description: str = ""


@dataclass(frozen=True)
class Match:
    """The latents that separate a behaviour's tokens best.

    Attributes:
        behaviour: The behaviour.
        tokens: Rows that carry its label among those compared.
        latent: Best latent with verdict exclusive on the fine-tuned side; None if there is none,
            and for kind gain.
        auroc: Its AUROC; NaN without a latent.
        best_any: Best latent whatever its verdict; None when no token carries the label.
        best_any_auroc: Its AUROC.
        found: The AUROC of `latent` is at least what the config asks for.
    """

    behaviour: Behaviour
    tokens: int
    latent: int | None
    auroc: float
    best_any: int | None
    best_any_auroc: float
    found: bool


class LabelledCodes:
    """Watches a pass and keeps every active latent with the label of its row.

    Only entries above 0 are kept, 11 bytes each.
    """

    def __init__(self):
        self._latents: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._chat: list[np.ndarray] = []
        self._counts = np.zeros((2, 1), np.int64)
        self._entries = 0

    def __call__(self, batch: ActivationBatch, codes: Float[Array, "R L"]) -> None:
        """Takes a batch and its scaled latents.

        Raises:
            JaxdiffError: If there are more entries than labelled data should have.
        """
        mask = np.asarray(batch.mask)
        v = np.asarray(codes)[: len(mask)]
        rows, latents = np.nonzero(v)
        labels = np.asarray(batch.labels).astype(np.int16)
        chat = np.asarray(batch.roles) != Role.TEXT
        self._latents.append(latents.astype(np.int32))
        self._values.append(v[rows, latents].astype(np.float32))
        self._labels.append(labels[rows])
        self._chat.append(chat[rows])
        most = max(int(labels.max(initial=0)) + 1, self._counts.shape[1])
        counts = np.zeros((2, most), np.int64)
        counts[:, : self._counts.shape[1]] = self._counts
        for side in (0, 1):
            counts[side] += np.bincount(labels[mask & (chat == side)], minlength=most)
        self._counts = counts
        self._entries += len(rows)
        if self._entries > _LARGEST:
            raise JaxdiffError(
                f"matching behaviours needs more than {_LARGEST} active latents in memory",
                where="text.test_sequences",
                fix="measure on fewer sequences, or pass no behaviours",
            )

    def auroc(
        self, latents: int, *, chat_only: bool
    ) -> tuple[Float[np.ndarray, "C L"], Int[np.ndarray, " C"]]:
        """Returns the AUROC of every latent for every label, and the rows of every label.

        Args:
            latents: Number of latents.
            chat_only: Compare rows of chats only; all rows otherwise.
        """
        chat = _join(self._chat)
        keep = chat if chat_only else np.ones_like(chat)
        counts = self._counts[1] if chat_only else self._counts.sum(axis=0)
        areas = sparse_auroc(
            _join(self._latents)[keep],
            _join(self._values)[keep],
            _join(self._labels)[keep],
            counts,
            latents,
        )
        return areas, counts


def match(
    codes: LabelledCodes,
    behaviours: Sequence[Behaviour],
    *,
    alive: Bool[np.ndarray, " L"],
    exclusive: Bool[np.ndarray, " L"],
    threshold: float,
) -> tuple[tuple[Match, ...], Float[np.ndarray, "K L"]]:
    """Finds the best latent for each behaviour.

    A new behaviour's rows are compared with all other rows of chats; text without a chat is left
    out, because telling chats from text is not finding the behaviour. A gain concept lives in text
    too, and its rows are compared with all others.

    Args:
        codes: What was seen in the pass.
        behaviours: What is known to be there.
        alive: Latents that fired.
        exclusive: Latents with verdict exclusive on the fine-tuned side.
        threshold: AUROC from which a behaviour is found.

    Returns:
        A match for each behaviour, and the AUROC of all K behaviours for all latents (NaN where a
        latent is dead or the label never occurs).
    """
    latents = len(alive)
    tables = {
        "new": codes.auroc(latents, chat_only=True),
        "gain": codes.auroc(latents, chat_only=False),
    }
    rows = np.full((len(behaviours), latents), np.nan)
    matches = []
    for i, behaviour in enumerate(behaviours):
        table, counts = tables[behaviour.kind]
        tokens = int(counts[behaviour.id]) if behaviour.id < len(counts) else 0
        if tokens:
            rows[i] = np.where(alive, table[behaviour.id], np.nan)
        best = _best(rows[i], exclusive) if behaviour.kind == "new" else None
        best_any = _best(rows[i], alive)
        area = float(rows[i, best]) if best is not None else float("nan")
        area_any = float(rows[i, best_any]) if best_any is not None else float("nan")
        found = area >= threshold
        matches.append(Match(behaviour, tokens, best, area, best_any, area_any, found))
    return tuple(matches), rows


def _best(areas: np.ndarray, allowed: np.ndarray) -> int | None:
    usable = np.where(allowed & ~np.isnan(areas), areas, -np.inf)
    return int(usable.argmax()) if np.isfinite(usable).any() else None


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts)
