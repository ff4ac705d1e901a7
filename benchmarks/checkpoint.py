"""Times checkpoints: how long training stands still for one, and how long it is written beside it.

    python benchmarks/checkpoint.py --shape C1 --folder /data --json results.json

The state is that of a BatchTopK dictionary of each shape, and a step is its training step. The
floor is writing as many bytes to one file and flushing it to the disk.
"""

import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from harness import command
from jaxdiff import checkpoint
from jaxdiff.activations import Normalization
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.mesh import make_mesh
from jaxdiff.training.compiled import compile_init, compile_step, put
from trainers.problem import SHAPES, Shape

PACKAGES = ("jaxdiff", "jax", "jaxlib", "numpy", "orbax-checkpoint", "tensorstore")


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    parser = command.parser(__doc__, SHAPES, seconds=None)
    parser.add_argument("--step", choices=("dense", "sparse"), default="sparse")
    parser.add_argument("--repeats", type=int, default=5, help="checkpoints [checkpoints]")
    parser.add_argument("--folder", type=command.folder, help="where checkpoints are written")
    options = parser.parse_args(arguments)

    def measure(name: str, console: Console) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found = _run(pathlib.Path(folder), SHAPES[name], options.step, options.repeats)
        _show(console, f"{name}: {SHAPES[name]}", found)
        return found

    command.run(options, PACKAGES, measure)


def _run(folder: pathlib.Path, shape: Shape, kind: str, repeats: int) -> dict[str, float]:
    """Returns medians in seconds, and bytes."""
    config = DictionaryConfig(latents=shape.latents, k=shape.k)
    train = TrainConfig(batch=shape.batch, beta1=0.0, step=kind)  # pyright: ignore
    mesh, sizes = make_mesh(1, 1), (shape.models, shape.width)
    start, like = compile_init(config, train, sizes, mesh)
    step = compile_step(config, train, like, mesh)
    rows = np.random.default_rng(0).standard_normal((shape.batch, *sizes), np.float32)
    x, same = put(rows, mesh), Normalization.identity(sizes)
    state, _ = step(start(x, same, key=jax.random.key(0)), x, same)
    taken: dict[str, list[float]] = {}

    def timed(name: str, work) -> Any:
        before = time.perf_counter()
        result = jax.block_until_ready(work())
        taken.setdefault(name, []).append(time.perf_counter() - before)
        return result

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with checkpoint.Writer(folder / "checkpoints", keep_last=1) as writer:
        for number in range(repeats):
            jax.block_until_ready(state)
            for _ in range(3):
                state, _ = timed("a step", lambda state=state: step(state, x, same))
            timed("training stands still", lambda s=state, n=number: writer.save(n, s, {}))
            state, _ = timed("a step beside the write", lambda state=state: step(state, x, same))
            before = time.perf_counter()
            writer.wait()
            rest = time.perf_counter() - before
            whole = taken["training stands still"][-1] + taken["a step beside the write"][-1] + rest
            taken.setdefault("the whole save", []).append(whole)
            timed("floor: one file, flushed", lambda: _flush(folder / "floor", size))
    timed("restore", lambda: checkpoint.restore(folder / "checkpoints", lambda record: like)[1])  # pyright: ignore
    return {name: statistics.median(times) for name, times in taken.items()} | {"bytes": size}


def _flush(path: pathlib.Path, size: int) -> None:
    with path.open("wb") as file:
        file.write(np.ones(size, np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _show(console: Console, title: str, found: dict[str, float]) -> None:
    table = Table(title=f"{title}, state of {found['bytes'] / 1e6:,.1f} MB", title_justify="left")
    for name in ("", "median ms", "MB/s"):
        table.add_column(name, justify="right" if name else "left")
    for name, seconds in found.items():
        if name != "bytes":
            rate = "" if "step" in name else f"{found['bytes'] / seconds / 1e6:,.0f}"
            table.add_row(name, f"{1e3 * seconds:,.1f}", rate)
    console.print(table)


if __name__ == "__main__":
    main()
