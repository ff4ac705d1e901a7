"""Times W0 to W9 in jaxdiff and, with --peers, in torch hooks, nnsight, TransformerLens and pyvene.

    pip install -e '.[bench]'
    python benchmarks/interventions.py --peers --shape tiny,gpt2 --json results.json

All libraries get the same random weights and inputs, and their outputs are compared before anything
is timed; one that is wrong is reported and not timed. Each runs in a process of its own on the same
two cores, one at a time, and their calls alternate. A first call has all tracing and compiling in
it.
"""

import argparse
import json
import pathlib
import sys
import tempfile

from rich.console import Console

from goals import OURS, Goal, Rows, fastest, goals
from harness import machine, timing
from harness.measure import Row, measure
from harness.workers import Failed, Worker
from subjects import SHAPES, make_inputs, write_models
from tables import break_even, show_case, show_goals
from workloads import WORKLOADS, Subject, cases

LIBRARIES = {
    "torch hooks": "libraries.torch_hooks:TorchHooks",
    "nnsight": "libraries.nnsight_traces:NNsightTraces",
    "transformer_lens": "libraries.transformer_lens_bridge:TransformerLensBridge",
    "pyvene": "libraries.pyvene_interventions:PyveneInterventions",
    OURS: "libraries.jaxdiff_programs:JaxdiffPrograms",
}
"""The first is the reference for outputs."""
PACKAGES = ("jaxdiff", "jax", "jaxlib", "flax", "numpy", "torch", "transformers")
PACKAGES += ("nnsight", "transformer-lens", "pyvene")


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150)
    libraries = LIBRARIES if options.peers else {OURS: LIBRARIES[OURS]}
    shapes = {}
    with tempfile.TemporaryDirectory() as folder:
        machine.settle(folder)
        about = machine.describe(PACKAGES)
        console.print_json(data=about)
        for name in options.shape:
            shapes[name] = _run(name, libraries, options.workloads, options.seconds, console)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": about, "shapes": shapes}, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    def names(known: object) -> object:
        def parse(text: str) -> tuple[str, ...]:
            chosen = tuple(text.split(","))
            if unknown := set(chosen) - set(known):
                raise argparse.ArgumentTypeError(f"{sorted(unknown)}: choose from {sorted(known)}")
            return chosen

        return parse

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    listed = ", ".join(f"{name} {title}" for name, title in WORKLOADS.items())
    parser.add_argument("--workloads", type=names(WORKLOADS), default=WORKLOADS, help=listed)
    parser.add_argument("--shape", type=names(SHAPES), default=("tiny",), help=", ".join(SHAPES))
    parser.add_argument("--peers", action="store_true", help="time the other libraries too")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="time for each way of running a case [s]"
    )
    parser.add_argument("--json", type=pathlib.Path, help="file to write all figures to")
    return parser


def _run(
    name: str, libraries: dict[str, str], chosen: tuple[str, ...], seconds: float, console: Console
) -> dict[str, object]:
    shape, rows, workers = SHAPES[name], {}, {}
    console.rule(f"{name}: {shape}")
    with tempfile.TemporaryDirectory() as folder:
        base, ft = write_models(pathlib.Path(folder), shape)
        subject = Subject(str(base), str(ft), shape, make_inputs(shape))
        try:
            for library, target in libraries.items():
                try:
                    workers[library] = Worker(target, subject)
                    console.print(_started(library, workers[library]))
                except Failed as error:
                    console.print(f"[red]{library}: {error}")
            for case in cases(shape):
                if case.workload in chosen:
                    rows[str(case)] = measure(case, workers, seconds)
                    show_case(console, case, rows[str(case)])
        finally:
            for worker in workers.values():
                worker.close()
    reached = goals(rows, name)
    show_goals(console, reached)
    return _record(workers, rows, reached)


def _started(library: str, worker: Worker) -> str:
    return (
        f"{library}: imported in {worker.import_seconds:.1f} s, "
        f"both models loaded in {worker.load_seconds:.1f} s"
    )


def _record(workers: dict[str, Worker], rows: Rows, reached: list[Goal]) -> dict[str, object]:
    return {
        "start": {
            library: {"import_s": worker.import_seconds, "load_s": worker.load_seconds}
            for library, worker in workers.items()
        },
        "cases": {
            case: [_row(row, fastest(r for r in group if r.library == OURS)) for row in group]
            for case, group in rows.items()
        },
        "goals": [
            {"goal": goal.text, "bound": goal.bound, "at_most": goal.most}
            | {"ratio": goal.ratio, "met": goal.met, "medians": goal.sides}
            for goal in reached
        ],
    }


def _row(row: Row, ours: Row | None) -> dict[str, object]:
    record = {"library": row.library, "way": row.way, "failed": row.failed}
    record |= {"difference": row.difference, "first_s": row.first, "peak_mib": row.peak}
    record |= {"compiled": row.compiled, "recompiled": row.recompiled}
    if row.warm is not None and row.plan is not None:
        record |= row.warm._asdict() | {"warmups": row.plan.warmups}
        record["total_s"] = {
            calls: timing.total(row.first, row.warm.median, calls) for calls in (1, 10, 100, 1000)
        }
    if row.library != OURS:
        record["ours_pays_after_calls"] = break_even(row, ours)
    return record


if __name__ == "__main__":
    main()
