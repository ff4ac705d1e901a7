"""Times the selection of the k B largest scores of a batch: jaxdiff, sorting, and other selectors.

    python benchmarks/selection.py --shape C1 --json results.json

All sides get the same scores and their sets are compared first; ties make no difference, since the
scores are drawn from a continuous distribution. torch is timed where it is installed.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxdiff.kernels.largest import largest
from jaxdiff.kernels.select import Scores, select
from rich.console import Console

from harness import machine
from harness.sides import compare, show
from trainers.problem import SHAPES, Shape, make_problem

OURS = "jaxdiff, list"


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory() as folder:
        machine.settle(folder)
        about = machine.describe(("jaxdiff", "jax", "jaxlib", "numpy", "torch"))
        shapes = {}
        for name in options.shape.split(","):
            shapes[name] = compare(_sides(name), options.seconds)
            show(console, f"{name}: {SHAPES[name]}", shapes[name], OURS)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": about, "shapes": shapes}, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="C0", help=f"comma-separated, of {', '.join(SHAPES)}")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each side [s]")
    parser.add_argument("--json", type=pathlib.Path, help="file to write all figures to")
    return parser


def _sides(name: str):
    problem = make_problem(name, batches=2)
    shape: Shape = problem.shape
    n = shape.k * shape.batch
    scores = np.maximum(problem.rows @ problem.encoder, 0)
    # The threshold of one batch is the guess for the next one, as in training.
    near = np.partition(scores[0].ravel(), -n)[-n].view(np.int32)
    flat = scores[1].ravel()
    on_device = jnp.asarray(scores[1])
    ones = jnp.ones(shape.latents)

    @jax.jit
    def as_list(scores, near):
        found = select(
            Scores(scores, 0 * ones, ones, jnp.int32(0)), jnp.int32(n), size=n, near=near
        )
        return found.entries

    @jax.jit
    def as_mask(scores):
        return largest(scores, jnp.int32(n))

    sides = {
        OURS: lambda: as_list(on_device, near),
        "jaxdiff, list, no guess": lambda: as_list(on_device, np.int32(0x7F000000)),
        "jaxdiff, mask": lambda: as_mask(on_device),
        "lax.top_k": lambda: top_k(on_device),
        "numpy.argpartition": lambda: np.argpartition(-flat, n)[:n],
    }
    top_k = jax.jit(lambda scores: lax.top_k(scores.ravel(), n)[1])
    expected = set(np.argpartition(-flat, n)[:n].tolist())
    found = as_list(on_device, near)
    assert set((np.asarray(found.indices) * shape.latents + found.groups).tolist()) == expected
    assert set(np.flatnonzero(as_mask(on_device)).tolist()) == expected
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.set_num_threads(machine.CORES)
        tensor = torch.from_numpy(flat)
        sides["torch.topk"] = lambda: torch.topk(tensor, n, sorted=False)
    return {key: _blocking(side) for key, side in sides.items()}


def _blocking(side):
    return lambda: jax.block_until_ready(side())


if __name__ == "__main__":
    main()
