"""Times the decoder's sum over selected latents: jaxdiff, the dense product, and other gathers.

    python benchmarks/decode.py --shape C1 --json results.json

All sides get the same entries, and their results are compared first. torch and SciPy are timed
where they are installed.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jaxdiff.kernels.weighted_gather import weighted_gather
from rich.console import Console

from harness import machine
from harness.sides import compare, show
from trainers.problem import SHAPES, make_problem

OURS = "jaxdiff"


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory() as folder:
        machine.settle(folder)
        about = machine.describe(("jaxdiff", "jax", "jaxlib", "numpy", "scipy", "torch"))
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
    return {key: _blocking(side) for key, side in sides.items()}


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


def _blocking(side):
    return lambda: jax.block_until_ready(side())


if __name__ == "__main__":
    main()
