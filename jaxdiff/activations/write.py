"""Writing a store, so that it can be killed at any point and go on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdiff.activations._harvest import Harvest
from jaxdiff.activations.files import (
    COLUMNS,
    FORMAT,
    Files,
    ShardInfo,
    chunk_key,
    numpy_dtype,
    shard_key,
    zarr_metadata,
)
from jaxdiff.activations.int8 import quantise
from jaxdiff.activations.recorded import Recorded
from jaxdiff.activations.rows import concatenate
from jaxdiff.config import HarvestConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.types import ActivationBatch


def write_store(
    folder: str | Path,
    rows: Harvest | Recorded,
    *,
    config: HarvestConfig,
    advance: Callable[[int], object] | None = None,
) -> None:
    """Writes all rows of a harvest into a folder that `Store.open` reads.

    After every full chunk the rows written and the position in the text are committed together.
    Called again on a folder that holds part of the same harvest, it goes on from there; the files
    end up the same to the last byte. On a complete one it does nothing.

    Every process writes a shard of its own into the same folder and all return together.

    Args:
        folder: A path, or the URL of a bucket; the working folder of a `jaxdiff.manifest.stage`.
        rows: From its start; moved on to where the folder's content ends.
        config: `dtype`, `chunk` and `normalize` are used here.
        advance: Told how many documents were written; first, those that were there already.

    Raises:
        JaxdiffError: If the disk is full or cannot be written, there are no rows, or the folder
            holds another harvest.
    """
    shard, shards = jax.process_index(), jax.process_count()
    info = ShardInfo(
        format=FORMAT,
        site=rows.site,
        shape=rows.shape,
        dtype=config.dtype,
        chunk=config.chunk,
        normalize=config.normalize,
        shard=shard,
        shards=shards,
    )
    _ShardWriter(Files(folder), rows, info, advance).run()
    if shards > 1:
        multihost_utils.sync_global_devices("jaxdiff.activations.write_store")


class _ShardWriter:
    def __init__(
        self,
        files: Files,
        rows: Harvest | Recorded,
        info: ShardInfo,
        advance: Callable[[int], object] | None,
    ):
        self._files = files
        self._rows = rows
        self._info = info
        self._advance = advance or (lambda n: None)
        self._key = shard_key(info.shard)
        self._pending: list[tuple[str, Any]] = []
        self._commit: dict[str, Any] | None = None

    def run(self) -> None:
        if self._is_complete():
            return
        start = self._resume()
        written, skip = start["rows"], start["skip"]
        first = written - skip
        documents, masked, rest = start["documents"], start["masked"], None
        self._advance(documents)
        while True:
            before = {"documents": documents, "masked": masked, "state": self._rows.get_state()}
            batch = next(self._rows, None)
            if batch is None:
                break
            new = len(np.unique(batch.sequences))
            documents, masked = documents + new, masked + int((~batch.mask).sum())
            self._advance(new)
            length = len(batch.tokens)
            # Rows of the batch in which the last commit fell are there already.
            batch, skip = _cut(batch, skip, length), 0
            rest = batch if rest is None else concatenate([rest, batch])
            full = len(rest.tokens) // self._info.chunk * self._info.chunk
            if full:
                self._write(rest, written, full)
                written, rest = written + full, _cut(rest, full, len(rest.tokens))
                self._commit = {**before, "rows": written, "skip": written - first}
            first += length
        if rest is not None and len(rest.tokens):
            self._write(_padded(rest, self._info.chunk), written, self._info.chunk)
            written += len(rest.tokens)
        self._finish(written, documents, masked)

    def _is_complete(self) -> bool:
        done = self._files.read_json(self._key + "shard.json", _FIX)
        if done is None:
            return False
        self._check(done)
        return True

    def _check(self, found: dict[str, Any]) -> None:
        for name, wanted in _header(self._info).items():
            if found.get(name) != wanted:
                raise JaxdiffError(
                    f"the folder holds another harvest: {name} is {found.get(name)}, not {wanted}",
                    where=self._files.name,
                    fix=_FIX,
                )

    def _resume(self) -> dict[str, Any]:
        progress = self._files.read_json(self._key + "progress.json", _FIX)
        if progress is None:
            return {"rows": 0, "skip": 0, "documents": 0, "masked": 0}
        self._check(progress["harvest"])
        self._rows.set_state(progress["state"])
        return progress

    def _write(self, batch: ActivationBatch, row: int, count: int) -> None:
        """Starts writing full chunks, after the ones before them are committed."""
        self._settle()
        chunk = self._info.chunk
        dtypes = {name: numpy_dtype(dtype) for name, (dtype, _) in self._info.arrays().items()}
        for start in range(0, count, chunk):
            parts = {name: getattr(batch, name)[start : start + chunk] for name in ("x", *COLUMNS)}
            if self._info.dtype == "int8":
                parts["x"], parts["scale"] = quantise(parts["x"])
            for name, part in parts.items():
                key = chunk_key(self._info.shard, name, (row + start) // chunk)
                data = part.astype(dtypes[name], copy=False).tobytes()
                self._pending.append((key, self._files.write(key, data)))

    def _settle(self) -> None:
        """Waits for the chunks being written, then commits them."""
        for key, future in self._pending:
            self._wait(key, future)
        self._pending = []
        if self._commit is not None:
            key = self._key + "progress.json"
            data = {"harvest": _header(self._info), **self._commit}
            self._wait(key, self._files.write_json(key, data))
            self._commit = None

    def _finish(self, written: int, documents: int, masked: int) -> None:
        self._settle()
        if not written and self._info.shards == 1:
            raise JaxdiffError("there are no activations to store", where=self._files.name)
        info = self._info.model_copy(
            update={
                "rows": written,
                "documents": documents,
                "masked": masked,
                "median_norm": self._rows.median_norm,
                "moments": self._rows.moments.to_json(),
            }
        )
        for name, (dtype, chunk) in info.arrays().items():
            key = self._key + name
            try:
                self._files.create_array(key, zarr_metadata(written, dtype, chunk))
            except (ValueError, OSError) as error:
                raise _explain(error, self._files, key) from error
        key = self._key + "shard.json"
        self._wait(key, self._files.write(key, info.model_dump_json(indent=1).encode()))
        self._files.delete(self._key + "progress.json")

    def _wait(self, key: str, future: Any) -> None:
        try:
            future.result()
        except (ValueError, OSError) as error:
            raise _explain(error, self._files, key) from error


_FIX = "delete the folder and harvest again"


def _header(info: ShardInfo) -> dict[str, Any]:
    """Returns what must agree for a harvest to go on, as JSON."""
    found = info.model_dump(mode="json")
    names = ("format", "site", "shape", "dtype", "chunk", "normalize", "shard", "shards")
    return {name: found[name] for name in names}


def _cut(batch: ActivationBatch, start: int, stop: int) -> ActivationBatch:
    return jax.tree.map(lambda a: a[start:stop], batch)


def _padded(batch: ActivationBatch, rows: int) -> ActivationBatch:
    def pad(a):
        return np.concatenate([a, np.zeros((rows - len(a), *a.shape[1:]), a.dtype)])

    return jax.tree.map(pad, batch)


def _explain(error: Exception, files: Files, key: str) -> JaxdiffError:
    free = "" if files.local is None else f" ({_free(files.local):.1f} GiB free)"
    return JaxdiffError(
        f"writing failed: {error}{free}",
        where=f"{files.name}/{key}",
        fix="free some space or choose another folder; complete chunks are kept, run again",
    )


def _free(folder: Path) -> float:
    there = next(p for p in (folder, *folder.parents) if p.exists())
    return shutil.disk_usage(there).free / 2**30
