"""Times the selection of the k B largest scores of a batch: jaxdiff, sorting, and other selectors.

    python benchmarks/selection.py --shape C1 --json results.json

All sides get the same scores and their sets are compared first; ties make no difference, since the
scores are drawn from a continuous distribution. torch is timed where it is installed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxdiff.kernels.largest import largest
from jaxdiff.kernels.scores import Held, Share
from jaxdiff.kernels.select import select
from rich.console import Console

from harness import command, machine
from harness.sides import compare, show
from trainers.problem import SHAPES, Shape, make_problem

OURS = "jaxdiff, list"
PACKAGES = ("jaxdiff", "jax", "jaxlib", "numpy", "torch")


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    options = command.parser(__doc__, SHAPES).parse_args(arguments)

    def measure(name: str, console: Console) -> dict[str, Any]:
        found = compare(_sides(name), options.seconds)
        show(console, f"{name}: {SHAPES[name]}", found, OURS)
        return found

    command.run(options, PACKAGES, measure)


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
            Held(scores, 0 * ones, ones, Share(jnp.int32(0))), jnp.int32(n), size=n, near=near
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
    return sides


if __name__ == "__main__":
    main()
