"""The command line of benchmarks that are run by shape, and the figures that they leave."""

import argparse
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable
from typing import Any

from rich.console import Console

from harness import machine


def folder(text: str) -> pathlib.Path:
    """Returns the folder that an argument names, made if need be."""
    path = pathlib.Path(text)
    path.mkdir(parents=True, exist_ok=True)
    return path


def parser(description: str, shapes: Collection[str], *, seconds: float | None = 5.0):
    """Returns a parser of --shape, --json and, unless `seconds` is None, --seconds."""

    def names(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := set(chosen) - set(shapes):
            raise argparse.ArgumentTypeError(f"{sorted(unknown)}: choose from {sorted(shapes)}")
        return chosen

    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    listed = f"comma-separated, of {', '.join(shapes)} [default: C0]"
    made.add_argument("--shape", type=names, default=("C0",), help=listed)
    if seconds is not None:
        made.add_argument(
            "--seconds", type=float, default=seconds, help=f"time for each side [s, {seconds:g}]"
        )
    made.add_argument("--json", type=pathlib.Path, help="file to write all figures to")
    return made


def run(
    options: argparse.Namespace,
    packages: Iterable[str],
    measure: Callable[[str, Console], Any],
    **more: Callable[[Console], Any],
) -> None:
    """Measures the shapes that were asked for, and writes the figures where asked.

    Args:
        options: What `parser` read.
        packages: Packages whose versions are stated.
        measure: Returns the figures of a shape, and prints them.
        **more: Figures that are of no shape, by name.
    """
    console = Console(width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory() as folder:
        machine.settle(folder)
        about = machine.describe(packages)
        console.print_json(data=about)
        found: dict[str, Any] = {"machine": about}
        found["shapes"] = {name: measure(name, console) for name in options.shape}
        found |= {name: function(console) for name, function in more.items()}
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
