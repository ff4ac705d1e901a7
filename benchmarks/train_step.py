"""Times one training step of a BatchTopK dictionary: jaxdiff, the floor, and with --peers others.

    pip install -e . torch==2.13.0 sae-lens==6.54.12
    pip install --no-deps dictionary-learning==0.1.0 eai-sparsify==1.3.3
    pip install simple-parsing einops natsort schedulefree nnsight
    python benchmarks/train_step.py --shape C1 --peers --json results.json

All sides start from the same weights and get the same heavy-tailed rows, and the squared error of
their first step is compared before anything is timed. They run in one process, and their steps
alternate. The floor is the encoder's product alone (the faster of jax and torch) and reading and
writing each parameter and its second moment once, at the speed of a copy. In the same turns the
parts of our sparse step are timed, each a program of its own.
"""

import importlib
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from harness import command, machine
from harness.sides import alternately
from trainers.jaxdiff_parts import parts
from trainers.problem import SHAPES, Problem, make_problem

OURS = {
    "jaxdiff sparse": "jaxdiff_step:Sparse",
    "jaxdiff dense": "jaxdiff_step:Dense",
    "jaxdiff sparse TopK": "jaxdiff_step:SparseTopK",
}
FLOOR = {"encoder, jax": "jaxdiff_step:Encoder", "copy": "problem:Copy"}
PEERS = {
    "encoder, torch": "torch_dense:Encoder",
    "torch, dense": "torch_dense:TorchDense",
    "dictionary_learning": "dictionary_learning_step:DictionaryLearning",
    "SAELens": "sae_lens_step:SAELens",
    "sparsify (TopK)": "sparsify_step:Sparsify",
}
_PART = "part: "
# Which loss the first step has; TopK selects for each row.
FIRST = dict.fromkeys(
    ("jaxdiff sparse", "jaxdiff dense", "torch, dense", "dictionary_learning", "SAELens"),
    "first_loss",
) | dict.fromkeys(("jaxdiff sparse TopK", "sparsify (TopK)"), "first_loss_by_row")
PACKAGES = ("jaxdiff", "jax", "jaxlib", "numpy", "torch")
PACKAGES += ("sae-lens", "dictionary-learning", "eai-sparsify")


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    parser = command.parser(__doc__, SHAPES, seconds=20.0)
    parser.add_argument("--peers", action="store_true", help="time the other libraries too")
    options = parser.parse_args(arguments)
    sides = FLOOR | OURS | (PEERS if options.peers else {})

    def measure(name: str, console: Console) -> dict[str, Any]:
        found = _run(make_problem(name), sides, options.seconds)
        _show(console, name, found)
        return found

    command.run(options, PACKAGES, measure)


def _run(problem: Problem, sides: dict[str, str], seconds: float) -> dict[str, Any]:
    """Returns, for each side, its timings; and the floor's parts and ratios."""
    steps: dict[str, Callable[[], None]] = {}
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
        expected = getattr(problem, FIRST[name]) if name in FIRST else loss
        if not np.isclose(loss, expected, rtol=2e-4):
            results[name]["failed"] = f"first loss {loss:.6g}, expected {expected:.6g}"
            continue
        steps[name] = _stepping(side)
    pieces = {f"{_PART}{name}": part for name, part in parts(problem).items()}
    warm = {name: w._asdict() for name, w in alternately(steps | pieces, seconds).items()}
    for name in steps:
        results[name]["warm_s"] = warm[name]
    return {
        "shape": problem.shape._asdict(),
        "sides": results,
        "floor_s": _floor(problem, results),
        "parts_s": {name.removeprefix(_PART): warm[name] for name in pieces},
    }


def _stepping(side) -> Callable[[], None]:
    """Returns a call that takes the side's next step."""
    numbers = itertools.count(1)
    return lambda: side.step(next(numbers))


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
    whole = _median(sides, "jaxdiff sparse")
    if whole is not None:
        console.print(_breakdown(result["parts_s"], whole))


def _breakdown(parts: dict[str, dict[str, float]], whole: float) -> Table:
    table = Table(title="parts of jaxdiff sparse", title_justify="left")
    table.add_column("part")
    for heading in ("median ms", "IQR", "of the step"):
        table.add_column(heading, justify="right")
    for name, warm in parts.items():
        median = warm["median"]
        spread = f"{(warm['q3'] - warm['q1']) * 1e3:.2f}"
        table.add_row(name, f"{median * 1e3:.2f}", spread, f"{median / whole:.0%}")
    return table


if __name__ == "__main__":
    main()
