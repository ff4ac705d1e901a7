"""Times the decoder's sum over selected latents: jaxdiff, the dense product, and other gathers.

    python benchmarks/decode.py --shape C1 --json results.json

All sides get the same entries, and their results are compared first. torch and SciPy are timed
where they are installed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxdiff.kernels.weighted_gather import weighted_gather
from rich.console import Console

from harness import command, machine
from harness.sides import compare, show
from trainers.problem import SHAPES, make_problem

OURS = "jaxdiff"
PACKAGES = ("jaxdiff", "jax", "jaxlib", "numpy", "scipy", "torch")


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    options = command.parser(__doc__, SHAPES).parse_args(arguments)

    def measure(name: str, console: Console) -> dict[str, Any]:
        found = compare(_sides(name), options.seconds)
        show(console, f"{name}: {SHAPES[name]}", found, OURS)
        return found

    command.run(options, PACKAGES, measure)


def _sides(name: str):
    problem = make_problem(name, batches=1)
    shape = problem.shape
    scores = np.maximum(problem.rows[0] @ problem.encoder, 0)
    n = shape.k * shape.batch
    threshold = np.partition(scores.ravel(), -n)[-n]
    codes = np.where(scores >= threshold, scores, 0)
    rows, latents = np.nonzero(codes)
    values = codes[rows, latents]
    offsets = np.searchsorted(rows, np.arange(shape.batch + 1)).astype(np.int32)
    chosen = latents.astype(np.int32)
    decoder, dense = jnp.asarray(problem.decoder), jnp.asarray(codes)
    listed = [jnp.asarray(a) for a in (chosen, values, offsets)]
    gather, product = jax.jit(weighted_gather), jax.jit(jnp.matmul)
    sides = {
        OURS: lambda: gather(decoder, *listed),
        "dense product, jax": lambda: product(dense, decoder),
    }
    expected = np.asarray(product(dense, decoder))
    sides |= _scipy(rows, latents, values, codes.shape, problem.decoder)
    sides |= _torch(chosen, values, offsets, codes, problem.decoder)
    for key, side in sides.items():
        np.testing.assert_allclose(side(), expected, rtol=1e-3, atol=1e-3, err_msg=key)
    return sides


def _scipy(rows, latents, values, shape, decoder):
    try:
        from scipy import sparse
    except ImportError:
        return {}
    matrix = sparse.csr_matrix((values, (rows, latents)), shape)
    return {"scipy CSR (one core)": lambda: matrix @ decoder}


def _torch(chosen, values, offsets, codes, decoder):
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(machine.CORES)
    indices, weights, dense, table = map(torch.from_numpy, (chosen, values, codes, decoder))
    starts = torch.from_numpy(offsets[:-1])

    def bag():
        return torch.nn.functional.embedding_bag(
            indices, table, starts, mode="sum", per_sample_weights=weights
        )

    return {"torch embedding_bag": bag, "dense product, torch": lambda: dense @ table}


if __name__ == "__main__":
    main()
