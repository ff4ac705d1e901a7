"""Times reading of stores: rows a second by dtype, against one element a row and a plain copy.

    python benchmarks/feed.py --shape C1,C3 --json results.json

A store of random rows is written to a folder and dealt out in shuffled batches, as to a trainer.
Beside it: Grain over the same files with an element a row, as loaders of tokens do it, and a copy
of as many bytes in memory, which nothing that reads can beat. Files that were just written come
from the page cache; --folder puts them on another disk, and what is larger than memory is read from
there. --quality also trains small dictionaries from stores of each dtype and compares them.
`jaxdiff bench feed STORE` measures your own store against the steps of your own config.
"""

import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from rich.console import Console
from rich.table import Table

from harness import command
from jaxdiff.activations import Recorded, Store, StoreSource, write_store
from jaxdiff.config import HarvestConfig
from jaxdiff.types import ActivationBatch
from storage_quality import quality
from trainers.problem import SHAPES, Shape

DTYPES = ("float32", "bfloat16", "int8")
PACKAGES = ("jaxdiff", "jax", "jaxlib", "numpy", "grain", "tensorstore")


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    parser = command.parser(__doc__, SHAPES)
    parser.add_argument("--rows", type=int, default=65_536, help="rows of a store [tokens]")
    parser.add_argument("--folder", type=command.folder, help="where stores are written")
    parser.add_argument("--quality", action="store_true", help="compare dictionaries too")
    options = parser.parse_args(arguments)

    def measure(name: str, console: Console) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found = _run(pathlib.Path(folder), SHAPES[name], options.rows, options.seconds)
        _show(console, f"{name}: {SHAPES[name]}", found)
        return found

    def trained(console: Console) -> list[dict[str, Any]]:
        found = quality()
        _show(console, "dictionaries trained from each dtype", found)
        return found

    more = {"quality": trained} if options.quality else {}
    command.run(options, PACKAGES, measure, **more)


def _run(folder: pathlib.Path, shape: Shape, rows: int, seconds: float) -> list[dict[str, Any]]:
    """Returns one record for each side."""
    found, drawn = [], list(_draw(shape, rows))
    for dtype in DTYPES:
        path = folder / dtype
        config = HarvestConfig(dtype=dtype, chunk=4096)
        start = time.perf_counter()
        write_store(path, Recorded(drawn, site="drawn"), config=config)
        written = time.perf_counter() - start
        store = Store.open(path)
        batches = StoreSource(store).batches(shape.batch, seed=0)
        blocks = _rate(lambda batches=batches: len(next(batches).x), seconds)
        single = _rate(_single(store, shape.batch), seconds)
        size = store.row_bytes
        found += [
            _record("blocks of rows", dtype, blocks, size) | {"written_rows_s": rows / written},
            _record("an element a row", dtype, single, size),
            _record(
                "copy in memory", dtype, _rate(_copy(size * shape.batch, shape), seconds), size
            ),
        ]
    return found


def _draw(shape: Shape, rows: int) -> Iterator[ActivationBatch]:
    rng, zeros = np.random.default_rng(0), np.zeros(4096, np.int32)
    for _ in range(-(-rows // 4096)):
        x = rng.standard_normal((4096, shape.models, shape.width), np.float32)
        yield ActivationBatch(x, zeros, zeros, zeros, zeros, zeros, np.ones(4096, bool))


def _single(store: Store, batch: int) -> Callable[[], int]:
    rows = grain.MapDataset.range(store.rows).seed(0).shuffle().repeat()
    read = rows.map(lambda row: store.read(row, row + 1).x[0])
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * batch)
    batches = iter(read.to_iter_dataset(options).batch(batch, drop_remainder=True))
    return lambda: len(next(batches))


def _copy(size: int, shape: Shape) -> Callable[[], int]:
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)

    def copy() -> int:
        np.copyto(target, source)
        return shape.batch

    return copy


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Returns rows a second, after one call that opens what is to be opened."""
    work()
    start, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        done += work()
    return done / spent


def _record(side: str, dtype: str, rows: float, size: int) -> dict[str, Any]:
    return {"side": side, "dtype": dtype, "rows_s": rows, "mb_s": rows * size / 1e6}


def _show(console: Console, title: str, records: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    names = list(dict.fromkeys(name for record in records for name in record))
    for name in names:
        table.add_column(name, justify="right" if name not in ("side", "dtype") else "left")
    for record in records:
        cells = (record.get(name, "") for name in names)
        table.add_row(*map(_cell, cells))
    console.print(table)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.4g}" if value < 10 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
