"""Running models on text and reading their activations, one batch behind the device."""

import collections
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxdiff.activations._devices import (
    local_rows,
    place_models,
    place_rows,
    row_sharding,
    rows_multiple,
    spans_processes,
)
from jaxdiff.activations._program import Observed, observe
from jaxdiff.activations.normalization import Moments
from jaxdiff.activations.pair import ModelPair, check_pair, source_name
from jaxdiff.config import HarvestConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.types import ActivationBatch, TokenBatch

CALIBRATION = 8192
"""Tokens whose median norm decides what an outlier is [tokens]."""


def harvest(
    pair: ModelPair,
    batches: "grain.IterDataset[TokenBatch] | Sequence[TokenBatch]",
    site: str,
    *,
    config: HarvestConfig,
    mesh: Mesh | None = None,
) -> "Harvest":
    """Runs all models on the same text and yields their activations in document order.

    Padding is removed; BOS, skipped positions and outlier norms stay, with mask False. An outlier
    has a norm above `config.outlier` times the median norm of that model; the median is that of
    the first 8192 tokens of the text, which are run once more for it, so that it does not depend
    on where a harvest was interrupted.

    Args:
        pair: The models.
        batches: Text: one epoch. With several processes, this process's shard of it.
        site: Where to read, by any name that `canonical_site` knows; several separated by commas.
        config: Batch dtype and masking; `batch` is not used, the text has its own.
        mesh: Devices; text rows are split over all of them, both axes. None: one device.

    Returns:
        An iterator of one `ActivationBatch` (NumPy) per batch of text, whose position can be
        saved and restored.

    Raises:
        JaxdiffError: If the models cannot be compared at the site; while iterating, if there is no
            text, a token is unknown, or an activation is not finite.
    """
    site, shape = check_pair(pair, site)
    if isinstance(batches, Sequence):
        if not batches:
            raise _no_text()
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        numbers = grain.MapDataset.range(len(batches))
        batches = numbers.map(batches.__getitem__).to_iter_dataset(options)
    return Harvest(pair, batches, site, shape, config, mesh)


class Harvest:
    """An iterator of activations whose position can be saved; made by `harvest`.

    Attributes:
        site: Canonical name of the site, or of several separated by commas.
        shape: (S, D), with a source for each model at each site.
        moments: Moments of the used rows yielded so far.
    """

    def __init__(
        self,
        pair: ModelPair,
        text: Any,
        site: str,
        shape: tuple[int, int],
        config: HarvestConfig,
        mesh: Mesh | None,
    ):
        self.site = site
        self.shape = shape
        self.moments = Moments.zeros(shape)
        self._pair = pair
        self._models = place_models(pair.models, mesh)
        self._dataset = text
        self._config = config
        self._mesh = mesh
        self._lockstep = spans_processes(mesh)
        self._text = iter(text)
        self._position = self._text.get_state()
        self._limit: np.ndarray | None = None
        self._flight: collections.deque[tuple[TokenBatch, Any, Observed]] = collections.deque()
        self.median_norm: tuple[float, ...] | None = None
        """Median norm of each model; None before the first row or without outlier masking."""

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self

    def __next__(self) -> ActivationBatch:
        if self._limit is None:
            self._limit = self._calibrate()
        # The device always has the next batch to work on while the host handles this one.
        while len(self._flight) < 2 and self._dispatch(self._text, self._limit):
            pass
        if not self._flight:
            raise StopIteration
        batch, self._position, seen = self._flight.popleft()
        count, mean, m2, mask, finite, x = map(
            local_rows, (seen.count, seen.mean, seen.m2, seen.mask, seen.finite, seen.x)
        )
        valid = np.asarray(batch.sequences).reshape(-1) >= 0
        self._check_finite(batch, finite[: len(batch.tokens)].reshape(valid.size, -1), valid)
        self.moments = self.moments.merge(count, mean, m2)

        def flat(array):
            return array[: len(batch.tokens)].reshape(valid.size, *array.shape[2:])[valid]

        return ActivationBatch(
            x=flat(x),
            tokens=flat(batch.tokens),
            roles=flat(batch.roles),
            sequences=flat(batch.sequences),
            positions=flat(batch.positions),
            labels=flat(batch.labels),
            mask=flat(mask),
        )

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch yielded, as JSON."""
        return {"text": self._position, "moments": self.moments.to_json()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` returned, in this process or an earlier one."""
        self._flight.clear()
        self._text.set_state(state["text"])
        self._position = state["text"]
        self.moments = Moments.from_json(state["moments"])

    def _dispatch(self, text: Any, limit: np.ndarray) -> bool:
        """Starts the next batch on the device; False when there is no more text."""
        batch = self._next_text(text)
        if batch is None:
            return False
        config = self._config
        padded = _pad_rows(batch, rows_multiple(self._mesh))
        seen = observe(
            self._models,
            place_rows(self._pair.tokens(padded.tokens), self._mesh, axis=1),
            place_rows(padded.sequences, self._mesh),
            place_rows(padded.positions, self._mesh),
            np.int32(config.skip + config.mask_bos),
            limit,
            site=self.site,
            dtype=config.computed,
            rows=row_sharding(self._mesh),
        )
        self._flight.append((batch, text.get_state(), seen))
        return True

    def _next_text(self, text: Any) -> TokenBatch | None:
        """Returns the next batch; padding while only other processes have text left."""
        batch = next(text, None)
        if not self._lockstep:
            return batch
        shape = (0, 0) if batch is None else batch.tokens.shape
        shapes = np.asarray(multihost_utils.process_allgather(np.array(shape)))
        if not shapes.any():
            return None
        if batch is not None:
            return batch
        zeros = np.zeros(shapes.max(axis=0), np.int32)
        return TokenBatch(zeros, zeros, zeros - 1, zeros, zeros)

    def _calibrate(self) -> np.ndarray:
        """Returns the largest norm that is no outlier, for each model, and checks for text."""
        unlimited = np.full(self.shape[0], np.inf, np.float32)
        text, norms, tokens = iter(self._dataset), [], 0
        while tokens < CALIBRATION and self._dispatch(text, unlimited):
            batch, _, seen = self._flight.popleft()
            tokens += batch.tokens.size
            norm, mask = local_rows(seen.norm), local_rows(seen.mask)
            norms.append(np.where(mask[:, :, None], norm, np.nan).reshape(-1, self.shape[0]))
        if not norms:
            raise _no_text()
        if self._config.outlier is None:
            return unlimited
        norm = np.concatenate(norms)
        if self._lockstep:
            norm = np.concatenate(np.asarray(multihost_utils.process_allgather(norm)))
        norm = norm[np.isfinite(norm).all(axis=1)]
        if not len(norm):
            return unlimited
        self.median_norm = tuple(float(m) for m in np.median(norm, axis=0))
        return np.asarray(self.median_norm, np.float32) * np.float32(self._config.outlier)

    def _check_finite(self, batch: TokenBatch, finite: np.ndarray, valid: np.ndarray) -> None:
        bad = np.argwhere(~finite & valid[:, None])
        if not len(bad):
            return
        token, source = bad[0]
        at = np.unravel_index(token, batch.tokens.shape)
        raise JaxdiffError(
            f"{source_name(self._pair, self.site, int(source))} are not finite: sequence "
            f"{batch.sequences[at]}, position {batch.positions[at]}, token {batch.tokens[at]}",
            where=self.site,
            fix="load the model in another dtype, or check its weights",
        )


def _pad_rows(batch: TokenBatch, multiple: int) -> TokenBatch:
    """Adds rows of padding until the number of rows can be split over the devices."""
    extra = -len(batch.tokens) % multiple
    if not extra:
        return batch

    def pad(array, value):
        return np.pad(array, ((0, extra), (0, 0)), constant_values=value)

    return TokenBatch(
        pad(batch.tokens, 0),
        pad(batch.roles, 0),
        pad(batch.sequences, -1),
        pad(batch.positions, 0),
        pad(batch.labels, 0),
    )


def _no_text() -> JaxdiffError:
    return JaxdiffError(
        "the corpus is empty: there is no text to run the models on",
        where="text.sources",
        fix="give files with text, or lower the number of sequences asked for",
    )
