"""Times one training step of a BatchTopK dictionary: jaxdiff, the floor, and with --peers others.

    pip install -e . torch==2.13.0 sae-lens==6.54.12
    pip install --no-deps dictionary-learning==0.1.0 eai-sparsify==1.3.3
    pip install simple-parsing einops natsort schedulefree nnsight
    python benchmarks/train_step.py --shape C1 --peers --json results.json

All sides start from the same weights and get the same heavy-tailed rows, and the squared error of
their first step is compared before anything is timed. They run in one process, and their steps
alternate. The floor is the encoder's product alone (the faster of jax and torch) and reading and
writing each parameter and its second moment once, at the speed of a copy.
"""

import argparse
import importlib
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from harness import machine, timing
from trainers.problem import SHAPES, Problem, make_problem

OURS = {"jaxdiff sparse": "jaxdiff_step:Sparse", "jaxdiff dense": "jaxdiff_step:Dense"}
FLOOR = {"encoder, jax": "jaxdiff_step:Encoder", "copy": "problem:Copy"}
PEERS = {
    "encoder, torch": "torch_dense:Encoder",
    "torch, dense": "torch_dense:TorchDense",
    "dictionary_learning": "dictionary_learning_step:DictionaryLearning",
    "SAELens": "sae_lens_step:SAELens",
    "sparsify (TopK)": "sparsify_step:Sparsify",
}
# sparsify selects for each row, so its first loss is another one.
COMPARED = {*OURS, "torch, dense", "dictionary_learning", "SAELens"}
PACKAGES = ("jaxdiff", "jax", "jaxlib", "numpy", "torch")
PACKAGES += ("sae-lens", "dictionary-learning", "eai-sparsify")


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    sides = FLOOR | OURS | (PEERS if options.peers else {})
    with tempfile.TemporaryDirectory() as folder:
        machine.settle(folder)
        about = machine.describe(PACKAGES)
        console.print_json(data=about)
        shapes = {}
        for name in options.shape:
            shapes[name] = _run(make_problem(name), sides, options.seconds)
            _show(console, name, shapes[name])
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": about, "shapes": shapes}, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    listed = "; ".join(f"{name}: {shape}" for name, shape in SHAPES.items())
    parser.add_argument(
        "--shape",
        type=lambda text: text.split(","),
        default=["C0"],
        help=f"comma-separated; {listed}",
    )
    parser.add_argument("--peers", action="store_true", help="time the other libraries too")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each side [s]")
    parser.add_argument("--json", type=pathlib.Path, help="file to write all figures to")
    return parser


def _run(problem: Problem, sides: dict[str, str], seconds: float) -> dict[str, Any]:
    """Returns, for each side, its timings; and the floor's parts and ratios."""
    steps: dict[str, Callable[[int], None]] = {}
    results: dict[str, Any] = {}
    for name, target in sides.items():
        module, _, kind = target.partition(":")
        machine.reset_peak()
        before = machine.peak()
        try:
            side = getattr(importlib.import_module(f"trainers.{module}"), kind)(problem)
        except ImportError as error:
            results[name] = {"failed": f"not installed: {error}"}
            continue
        start = time.perf_counter()
        loss = side.first()
        first = time.perf_counter() - start
        peak = machine.peak()
        results[name] = {
            "first_s": first,
            "first_loss": loss,
            "peak_mib": None if peak is None or before is None else peak - before,
        }
        if name in COMPARED and not np.isclose(loss, problem.first_loss, rtol=2e-4):
            results[name]["failed"] = f"first loss {loss:.6g}, expected {problem.first_loss:.6g}"
            continue
        steps[name] = side.step
    _time(steps, results, seconds)
    return {"shape": problem.shape._asdict(), "sides": results, "floor_s": _floor(problem, results)}


def _time(steps, results, seconds: float) -> None:
    names = list(steps)
    plans = []
    for name in names:
        start = time.perf_counter()
        steps[name](0)
        plans.append(timing.plan(time.perf_counter() - start, seconds))
    for name, plan in zip(names, plans, strict=True):
        for i in range(plan.warmups):
            steps[name](i + 1)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in timing.alternate([plan.repeats for plan in plans]):
        start = time.perf_counter()
        steps[names[turn]](len(taken[names[turn]]))
        taken[names[turn]].append(time.perf_counter() - start)
    for name in names:
        results[name]["warm_s"] = timing.summarize(taken[name])._asdict()


def _median(results, name: str) -> float | None:
    return results.get(name, {}).get("warm_s", {}).get("median")


def _floor(problem: Problem, results) -> float:
    """Returns the encoder's product, and 16 bytes a parameter at the speed of the copy [s]."""
    products = [_median(results, f"encoder, {name}") for name in ("jax", "torch")]
    product = min(p for p in products if p is not None)
    copied = _median(results, "copy")
    assert copied is not None
    return product + copied * 16 * problem.parameters / problem.copied_bytes


def _show(console: Console, name: str, result: dict[str, Any]) -> None:
    shape, sides, floor = result["shape"], result["sides"], result["floor_s"]
    table = Table(title=f"{name}: {shape}  floor {floor * 1e3:.1f} ms", title_justify="left")
    table.add_column("side")
    for heading in ("first s", "median ms", "IQR", "n", "/ floor", "/ ours", "rows/s", "MiB"):
        table.add_column(heading, justify="right")
    ours = min(m for n in OURS if (m := _median(sides, n)) is not None)
    for side, row in sides.items():
        warm = row.get("warm_s")
        if warm is None:
            table.add_row(side, f"not timed: {row['failed']}")
            continue
        median = warm["median"]
        table.add_row(
            side,
            f"{row['first_s']:.1f}",
            f"{median * 1e3:.1f}",
            f"{(warm['q3'] - warm['q1']) * 1e3:.1f}",
            str(warm["repeats"]),
            f"{median / floor:.2f}",
            f"{median / ours:.2f}",
            f"{shape['batch'] / median:.0f}",
            "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
