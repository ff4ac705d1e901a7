"""Times reading of stores: rows a second by dtype, against one element a row and a plain copy.

    python benchmarks/feed.py --shape C1,C3 --json results.json

A store of random rows is written to a folder and dealt out in shuffled batches, as to a trainer.
Beside it: Grain over the same files with an element a row, as loaders of tokens do it, and a copy
of as many bytes in memory, which nothing that reads can beat. Files that were just written come
from the page cache; --folder puts them on another disk, and what is larger than memory is read from
there. --quality also trains small dictionaries from stores of each dtype and compares them.
`jaxdiff bench feed STORE` measures your own store against the steps of your own config.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from rich.console import Console
from rich.table import Table

from harness import machine
from jaxdiff.activations import Recorded, Store, StoreSource, write_store
from jaxdiff.config import HarvestConfig
from jaxdiff.types import ActivationBatch
from storage_quality import quality
from trainers.problem import SHAPES, Shape

DTYPES = ("float32", "bfloat16", "int8")
PACKAGES = ("jaxdiff", "jax", "jaxlib", "numpy", "grain", "tensorstore")


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    about = machine.describe(PACKAGES)
    console.print_json(data=about)
    shapes = {}
    for name in options.shape:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            shapes[name] = _run(pathlib.Path(folder), SHAPES[name], options.rows, options.seconds)
        _show(console, f"{name}: {SHAPES[name]}", shapes[name])
    found: dict[str, Any] = {"machine": about, "shapes": shapes}
    if options.quality:
        found["quality"] = quality()
        _show(console, "dictionaries trained from each dtype", found["quality"])
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape",
        type=lambda text: text.split(","),
        default=["C0"],
        help=f"comma-separated: {', '.join(SHAPES)}",
    )
    parser.add_argument("--rows", type=int, default=65_536, help="rows of a store [tokens]")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each side [s]")
    parser.add_argument("--folder", type=pathlib.Path, help="where stores are written")
    parser.add_argument("--quality", action="store_true", help="compare dictionaries too")
    parser.add_argument("--json", type=pathlib.Path, help="file to write all figures to")
    return parser


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
        table.add_row(
            *(
                f"{c:,.4g}"
                if isinstance(c, float) and c < 10
                else f"{c:,.0f}"
                if isinstance(c, float)
                else str(c)
                for c in cells
            )
        )
    console.print(table)


if __name__ == "__main__":
    main()
