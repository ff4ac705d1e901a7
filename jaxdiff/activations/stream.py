"""Training while the models run, without touching the disk."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import grain
import jax
from jax.sharding import Mesh

from jaxdiff.activations._devices import everywhere, merge_processes, place_models, spans_processes
from jaxdiff.activations._harvest import harvest
from jaxdiff.activations._ring import Feed, Ring
from jaxdiff.activations.normalization import Normalization
from jaxdiff.activations.pair import ModelPair, check_pair
from jaxdiff.config import HarvestConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.types import ActivationBatch, TokenBatch

WARMUP = 65_536
"""Rows that the normalisation is estimated from [tokens]."""


class StreamSource:
    """Trains from the models themselves; the disk is never touched.

    The ring has two halves. One is dealt out in random order while the other fills at the same
    pace, in the caller's thread: a step of training pays for about as many new rows as it uses.
    Masked rows never enter. The text is read over and over, and what an epoch leaves over goes
    into the next one; only the last incomplete batch of the last epoch is dropped.

    A position is where in the text the first row of the half lies that is being dealt out, so
    resuming runs the models again on at most a ring of rows, and goes on bit-identically.

    Args:
        pair: The models.
        batches: Text of one epoch; with several processes, this process's shard of it.
        site: Where to read.
        config: `ring` and what `harvest` uses.
        mesh: Devices of the models.
        normalization: That of another source, for held-out text; estimated when None, from the
            first rows of the text (at least `warmup`, or all), which are run once more for it.
        warmup: Rows that it is estimated from [tokens].

    Attributes:
        lockstep: Whether other processes run the models with this one, on their part of the text.

    Raises:
        JaxdiffError: If the models cannot be compared at the site.
    """

    def __init__(
        self,
        pair: ModelPair,
        batches: "grain.IterDataset[TokenBatch] | Sequence[TokenBatch]",
        site: str,
        *,
        config: HarvestConfig,
        mesh: Mesh | None = None,
        normalization: Normalization | None = None,
        warmup: int = WARMUP,
    ):
        _, self.shape = check_pair(pair, site)
        _check_mesh(mesh)
        pair = replace(pair, models=place_models(pair.models, mesh))
        self._harvest = lambda: harvest(pair, batches, site, config=config, mesh=mesh)
        self._config = config
        self.lockstep = spans_processes(mesh)
        self._normalization = normalization
        if normalization is None and not config.normalize:
            self._normalization = Normalization.identity(self.shape)
        self._warmup = warmup

    @property
    def normalization(self) -> Normalization:
        """Returns the one given, or estimates it once; the identity if `normalize` is off."""
        if self._normalization is None:
            self._normalization = self._estimate()
        return self._normalization

    def batches(self, batch: int, *, seed: int, epochs: int | None = None) -> Ring:
        """Yields shuffled batches; this process's part of each (see `ActivationSource`).

        Raises:
            ValueError: If `batch` cannot be split over the processes.
        """
        parts = jax.process_count()
        if batch % parts:
            raise ValueError(f"a batch of {batch} rows cannot be split into {parts} parts")
        return Ring(
            Feed(self._harvest, epochs),
            half=max(self._config.ring // 2 // parts, 1),
            batch=batch // parts,
            seed=(seed, jax.process_index()),
            lockstep=self.lockstep,
            owner=f"process {jax.process_index()} of {parts}",
        )

    def in_order(self) -> Iterator[ActivationBatch]:
        """Yields all rows, masked ones too, once and in document order."""
        return iter(self._harvest())

    def _estimate(self) -> Normalization:
        rows = self._harvest()
        for _ in rows:
            if everywhere(rows.moments.count >= self._warmup, self.lockstep):
                break
        return merge_processes(rows.moments).normalization()


def _check_mesh(mesh: Mesh | None) -> None:
    """Refuses meshes where several processes need the same rows: each has only its own."""
    if mesh is None:
        return
    for devices in mesh.devices.reshape(mesh.devices.shape[0], -1):
        if len({device.process_index for device in devices}) > 1:
            raise JaxdiffError(
                "in stream mode the latent axis of the mesh must lie within one process",
                where="mesh.latent",
                fix="raise mesh.data to at least the number of processes, or use store mode",
            )
