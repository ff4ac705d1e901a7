"""Kernels beside their XLA definitions, on the device that is there.

    python benchmarks/kernels.py [--rows 4096 --width 4608 --latents 18432 --k 25] [--json FILE]

Both sides of an op are timed in one process, in turn. The shape is that of a batch of BatchTopK on
one of four devices among which the latents are split; entries fall on latents as 1 / rank. On a CPU
there is the XLA side alone: Pallas kernels are interpreted there, which says nothing about them.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxdiff.kernels.dispatch import Implementation
from jaxdiff.kernels.encode_marks import encode_marks
from jaxdiff.kernels.gathered_dots import gathered_dots
from jaxdiff.kernels.row_adam import Schedule, row_adam, row_squares
from jaxdiff.kernels.row_adam import Table as Rows
from jaxdiff.kernels.weighted_gather import weighted_gather
from rich.console import Console
from rich.table import Table

from harness import machine
from harness.sides import alternately

PALLAS: dict[str, Implementation] = {"tpu": "pallas_tpu", "gpu": "pallas_gpu"}
BUDGET = 5.0
"""Seconds that a side's timed calls take at most, nearly."""


def row_list(shape: argparse.Namespace, groups: int, rows: int):
    """Returns indices, weights and offsets of a list of rows * k entries."""
    rng = np.random.default_rng(0)
    entries = shape.rows * shape.k
    odds = 1 / np.arange(1, groups + 1) if groups == shape.latents else np.ones(groups)
    counts = rng.multinomial(entries, rng.permutation(odds / odds.sum()))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return (
        jnp.asarray(rng.integers(0, rows, entries), jnp.int32),
        jnp.asarray(rng.normal(size=entries), jnp.float32),
        jnp.asarray(offsets, jnp.int32),
    )


def ops(shape: argparse.Namespace) -> dict[str, Callable[[Implementation], Callable[[], object]]]:
    """Returns each op by name: what is given an implementation, and gives a call to time."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (shape.rows, shape.width))
    W = jax.random.normal(keys[1], (shape.latents, shape.width)) / shape.width**0.5
    slope = jax.random.normal(keys[2], (shape.rows, shape.width))
    by_row = row_list(shape, shape.rows, shape.latents)
    indices, weights, offsets = row_list(shape, shape.latents, shape.rows)
    groups = np.repeat(np.arange(shape.latents), np.diff(offsets))
    listed = jnp.asarray(groups, jnp.int32), slope, indices, jnp.int32(indices.size)
    # Twice the standard deviation of keys: one in 44 is marked.
    slack = jnp.full(len(x), 1e-3), jnp.ones(shape.latents)
    vectors = jnp.zeros(shape.latents), jnp.ones(shape.latents), jnp.float32(2), slack

    def gather(name):
        call = jax.jit(lambda *a: weighted_gather(*a, name))
        return lambda: call(W, *by_row)

    def adam(name):
        def step(table):
            how = Schedule(jnp.int32(9), jnp.float32(1e-4), jnp.float32(1), jnp.int32(0))
            last = jnp.zeros(shape.latents, jnp.int32)
            given = (table,), last, (x,), indices, (weights,), offsets, how
            return row_adam(*given, implementation=name)[0]

        call = jax.jit(step, donate_argnums=0)
        held = [Rows(W + 0, jnp.zeros_like(W), jnp.sum(jnp.square(W), axis=1, keepdims=True))]

        def run():
            held[0] = call(held[0])
            return held[0]

        return run

    def norm(name):
        call = jax.jit(lambda *a: row_squares((a[0],), a[1], (a[2],), a[3], implementation=name))
        return lambda: call(x, indices, weights, offsets)

    def dots(name):
        call = jax.jit(lambda *a: gathered_dots(*a, implementation=name))
        return lambda: call(W, *listed)

    def marks(dtype, name):
        call = jax.jit(lambda *a: encode_marks(*a, dtype=dtype, implementation=name))
        return lambda: call(x, W, *vectors)

    return {
        "weighted_gather": gather,
        "row_adam": adam,
        "row_squares": norm,
        "gathered_dots": dots,
        "encode_marks, float32": functools.partial(marks, jnp.float32),
        "encode_marks, bfloat16": functools.partial(marks, jnp.bfloat16),
    }


def main() -> None:
    """Prints a table, and writes the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096, help="rows of a batch")
    parser.add_argument("--width", type=int, default=4608, help="columns of a row")
    parser.add_argument("--latents", type=int, default=18432, help="latents of this device")
    parser.add_argument("--k", type=int, default=25, help="entries per row on this device")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    shape = parser.parse_args()
    device = jax.devices()[0]
    pallas = PALLAS.get(device.platform)
    names: list[Implementation] = ["xla", *([pallas] if pallas else [])]
    table = Table(title=f"{device.device_kind}: {shape.rows} x {shape.width}, {shape.latents}")
    for heading in ("op", "implementation", "median ms", "IQR", "n"):
        table.add_column(heading)
    found = []
    for op, prepare in ops(shape).items():
        sides = {name: prepare(name) for name in names}
        for side in sides.values():
            jax.block_until_ready(side())
        for name, summary in alternately(sides, BUDGET).items():
            found.append({"op": op, "implementation": name, **summary._asdict()})
            cells = f"{1e3 * summary.median:.3f}", f"{1e3 * (summary.q3 - summary.q1):.3f}"
            table.add_row(op, name, *cells, str(summary.repeats))
    Console().print(table)
    if shape.json:
        settings = {k: v for k, v in vars(shape).items() if k != "json"}
        stated = machine.describe(("jax", "jaxlib", "jaxdiff")) | {"device": device.device_kind}
        document = {"machine": stated, "shape": settings, "results": found}
        shape.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
