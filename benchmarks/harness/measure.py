"""One case in all libraries: outputs compared, then calls timed in turn."""

from typing import NamedTuple

import numpy as np

from harness import timing
from harness.workers import Call, Failed, Worker
from workloads import Case, Outputs

TOLERANCE = 1e-4
"""Largest difference from the reference, both absolute and as a fraction of its L2 norm."""


class Row(NamedTuple):
    """What one way of running a case gave.

    Attributes:
        library: Name of the library.
        way: Name of the way; empty where there is one.
        first: Duration of the first call [s]; None if it failed.
        difference: Largest absolute difference from the reference; None without one.
        failed: Why it was not timed; None if it was.
        plan: Warm-ups (besides the first call) and timed calls.
        warm: Statistics of the timed calls [s].
        peak: Peak of the process's resident memory in the first call [MiB].
        compiled: Programs that the first call compiled.
        recompiled: Programs that the timed calls compiled.
    """

    library: str
    way: str
    first: float | None = None
    difference: float | None = None
    failed: str | None = None
    plan: timing.Plan | None = None
    warm: timing.Summary | None = None
    peak: float | None = None
    compiled: int = 0
    recompiled: int = 0


def measure(case: Case, workers: dict[str, Worker], seconds: float) -> list[Row]:
    """Runs a case in every way that every library has.

    Args:
        case: What to run.
        workers: Libraries by name; the first that succeeds is the reference for outputs.
        seconds: Time for each way [s].

    Returns:
        A row for each way.
    """
    rows, reference = [], None
    for library, worker in workers.items():
        for way in _ways(case, library, worker, rows):
            row, outputs = _check(Row(library, way), worker, reference)
            reference = outputs if reference is None else reference
            rows.append(row)
    timed = [row for row in rows if row.failed is None]
    plans = [_plan(row, workers[row.library], seconds) for row in timed]
    calls: list[list[Call]] = [[] for _ in timed]
    for side in timing.alternate([plan.repeats for plan in plans]):
        calls[side].append(workers[timed[side].library].run(timed[side].way))
    for row, plan, made in zip(timed, plans, calls, strict=True):
        rows[rows.index(row)] = row._replace(
            plan=plan,
            warm=timing.summarize([call.seconds for call in made]),
            recompiled=sum(call.compiled for call in made),
        )
    return rows


def difference(outputs: Outputs, reference: Outputs) -> float:
    """Returns the largest absolute difference of outputs from a reference.

    Raises:
        Failed: If they differ in shape or by more than the tolerance.
    """
    shapes = [part.shape for part in outputs], [part.shape for part in reference]
    if shapes[0] != shapes[1]:
        raise Failed(f"outputs have shapes {shapes[0]}, the reference's have {shapes[1]}")
    largest = 0.0
    for part, other in zip(outputs, reference, strict=True):
        delta = part.astype(np.float64) - other
        absolute = float(np.abs(delta).max())
        relative = float(np.linalg.norm(delta) / np.linalg.norm(other))
        # Written so that NaN does not pass.
        if not max(absolute, relative) <= TOLERANCE:
            raise Failed(f"outputs differ by {absolute:.1e}, {relative:.1e} of their norm")
        largest = max(largest, absolute)
    return largest


def _ways(case: Case, library: str, worker: Worker, rows: list[Row]) -> list[str]:
    try:
        return worker.ways(case)
    except Failed as error:
        rows.append(Row(library, "", failed=str(error)))
        return []


def _check(row: Row, worker: Worker, reference: Outputs | None) -> tuple[Row, Outputs | None]:
    try:
        first = worker.first(row.way)
        row = row._replace(first=first.seconds, compiled=first.compiled, peak=first.peak)
        if reference is not None:
            row = row._replace(difference=difference(first.outputs, reference))
    except Failed as error:
        return row._replace(failed=str(error)), None
    return row, first.outputs


def _plan(row: Row, worker: Worker, seconds: float) -> timing.Plan:
    assert row.first is not None
    if row.compiled == 0 and row.first > seconds / 2:
        return timing.plan(row.first, seconds)
    plan = timing.plan(worker.run(row.way).seconds, seconds)
    for _ in range(plan.warmups - 1):
        worker.run(row.way)
    return plan._replace(warmups=max(plan.warmups, 1))
