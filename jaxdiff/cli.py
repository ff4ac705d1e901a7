"""The command line: thin; every command is one function of a package."""

import argparse
import contextlib
import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdiff import __version__, config
from jaxdiff.config import RunConfig
from jaxdiff.errors import JaxdiffError

_STAGES = {
    "run": "harvest, train, diff and report, in order",
    "harvest": "run both models on the text and keep their activations",
    "train": "train every dictionary of the config on them",
    "diff": "measure on held-out text what the dictionaries say about the pair",
    "report": "write results.json and the HTML page",
}


_ESTIMATE = (
    "memory, operations, traffic and the shortest time of harvest and training on hardware that is "
    "not here. --topology CHIP:SHAPE names it (v5p:4x4x4, h100:8); --width D stands in for models "
    "whose config cannot be read; --json FILE keeps all numbers"
)
_SEVERAL = (
    ". On several hosts, start it on each, with --distributed where JAX finds the others by itself "
    "(TPU pods, Slurm, Kubernetes, MPI), else with --coordinator HOST:PORT --processes N "
    "--process I; they share the run's folder"
)
_FEED = (
    "rows and bytes a second that a store deals out, that the steps of a config's dictionaries "
    "eat, and that training from the store gets; which is the limit. STORE is a folder of a "
    "harvest [default: that of the config's training split]; --seconds S is the time for each; "
    "--json FILE keeps the figures"
)
_NO_NULL = "--no-null-pair"
_GRACE = 30.0
"""Time for the other processes to fail in the same way, before this one leaves [seconds]."""


def main(args: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: Words after the program's name; those of the process when None.

    Returns:
        The exit code: 0, 2 when something given cannot be used, or 143 when preempted.
    """
    words = sys.argv[1:] if args is None else args
    known, rest = _parser().parse_known_args(words)
    try:
        return _COMMANDS.get(known.command, _stage)(known, rest)
    except JaxdiffError as error:
        print(f"jaxdiff: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        return 0  # The reader, `head` for instance, has seen enough.
    except OSError as error:
        print(f"jaxdiff: {error.strerror or error}\n  where: {error.filename}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxdiff: interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxdiff", description="Find out what fine-tuning changed inside a language model."
    )
    parser.add_argument("--version", action="version", version=f"jaxdiff {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    # Help of commands with a config is printed by tyro, with the config's own values as defaults.
    quick = commands.add_parser(
        "quickstart", help="the whole pipeline on a small pair with known truth", add_help=False
    )
    quick.set_defaults(config="quickstart")
    for name, text in _STAGES.items():
        stage = commands.add_parser(name, help=text, add_help=False, allow_abbrev=False)
        stage.add_argument("config", nargs="?", default=None)
        stage.add_argument("--distributed", action="store_true")
        stage.add_argument("--coordinator")
        stage.add_argument("--processes", type=int)
        stage.add_argument("--process", type=int)
    cost = commands.add_parser(
        "estimate",
        help="say what a run needs on hardware that is not here: memory, time, traffic",
        add_help=False,
    )
    cost.add_argument("config", nargs="?", default=None)
    cost.add_argument("--topology")
    cost.add_argument("--width", type=int)
    cost.add_argument("--json", type=Path)
    organism = commands.add_parser("organism", help="make a pair with known truth anew")
    organism.add_argument("name", help="name of the organism, for instance chat-tiny")
    organism.add_argument("--out", type=Path, help="folder [default: runs/NAME]")
    organism.add_argument(
        "--corpora-only", action="store_true", help="write the labelled text, train no model"
    )
    _bench_parser(commands)
    commands.add_parser("presets", help="list the configs that come with jaxdiff")
    _dictionary_parser(commands)
    commands.add_parser("models", help="list the architectures that can be loaded")
    sites = commands.add_parser(
        "sites",
        help="list the sites of a model",
        description="List every site of a model, where activations can be read and edited, in the "
        "order of computation, with the axes of its value: B rows, T tokens, S tokens that are "
        "looked at. Only config.json is read.",
    )
    sites.add_argument("model", metavar="MODEL", help="directory or hub name")
    sites.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        help="only sites that match, like 'blocks.0.attn.*'",
    )
    return parser


def _bench_parser(commands: Any) -> None:
    parser = commands.add_parser("bench", help="measure parts of a run on this machine")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    feed = actions.add_parser("feed", help="a store against what training eats", add_help=False)
    feed.add_argument("store", nargs="?", type=Path)
    feed.add_argument("--config", default="quickstart")
    feed.add_argument("--seconds", type=float, default=5.0)
    feed.add_argument("--json", type=Path)


def _dictionary_parser(commands: Any) -> None:
    words = {
        "import": "read another tool's dictionary and write it as one of jaxdiff",
        "export": "write a dictionary of jaxdiff as another tool would",
        "formats": "list the formats",
    }
    parser = commands.add_parser("dictionary", help="dictionaries from and to other tools' files")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = {
        name: actions.add_parser(name, help=text, description=text) for name, text in words.items()
    }
    own = "folder with dictionary.safetensors, as `jaxdiff train` and import write them"
    shown["import"].add_argument("source", type=Path, help="folder of the files, or one of them")
    shown["import"].add_argument("out", type=Path, help=f"new {own}")
    shown["import"].add_argument("--format", help="[default: by the names of the files]")
    shown["export"].add_argument("source", type=Path, help=own)
    shown["export"].add_argument("out", type=Path, help="folder to write into")
    shown["export"].add_argument("--format", required=True, help="see `jaxdiff dictionary formats`")


def _stage(known: argparse.Namespace, rest: list[str]) -> int:
    about = _STAGES.get(known.command, "the whole pipeline on a pair with known truth")
    if known.command != "quickstart":
        about += _SEVERAL
    settings = _settings(known, rest, about)
    _quiet()
    if known.command != "quickstart":
        _join(known)
    from jaxdiff import pipeline

    name = "run" if known.command == "quickstart" else known.command
    with _leaving():
        result = getattr(pipeline, name)(settings)
    if name in ("run", "report"):
        pipeline.summarize(settings, result)
    return 0


def _join(known: argparse.Namespace) -> None:
    """Makes this process one of several, before JAX looks for devices."""
    given = {name: getattr(known, name) for name in ("coordinator", "processes", "process")}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if not known.distributed and len(missing) == 3:
        return
    if 0 < len(missing) < 3:
        raise JaxdiffError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            where="--distributed",
            fix="give --coordinator HOST:PORT --processes N --process I (from 0) to all processes, "
            "or --distributed alone on a cluster that JAX knows (TPU pods, Slurm, Kubernetes, MPI)",
        )
    import jax

    try:
        jax.distributed.initialize(
            coordinator_address=known.coordinator,
            num_processes=known.processes,
            process_id=known.process,
        )
    except (ValueError, RuntimeError) as error:
        raise JaxdiffError(
            f"this process cannot join the others: {str(error).splitlines()[0]}",
            where="--distributed",
            fix="check that the coordinator can be reached, or give --coordinator HOST:PORT "
            "--processes N --process I",
        ) from None


@contextlib.contextmanager
def _leaving() -> Iterator[None]:
    """Where one of several processes fails, ends it although the others go on.

    On the way out JAX waits minutes for them to end too, while they wait for this one.
    """
    try:
        yield
    except BaseException as error:
        import jax

        if jax.process_count() > 1:
            code = error.code if isinstance(error, JaxdiffError) else 1
            last = threading.Timer(_GRACE, os._exit, (code,))
            last.daemon = True
            last.start()
        raise


def _settings(known: argparse.Namespace, rest: list[str], about: str) -> RunConfig:
    """Returns the config with the fields that are set on the command line."""
    import tyro

    if known.config is None and not set(rest) & {"-h", "--help"}:
        raise JaxdiffError(
            f"jaxdiff {known.command} needs a config: a YAML file or a preset",
            fix=f"presets are {', '.join(config.presets())}",
        )
    return tyro.cli(
        tyro.conf.AvoidSubcommands[RunConfig],
        args=[word for word in rest if word != _NO_NULL],
        default=_with_null_pair(config.load(known.config or "quickstart"), rest),
        prog=f"jaxdiff {known.command}" + ("" if known.command == "quickstart" else " CONFIG"),
        description=about
        + ". CONFIG is a YAML file or a preset; every field of it can be set here. "
        + f"{_NO_NULL} leaves the null pair out.",
    )


def _estimate(known: argparse.Namespace, rest: list[str]) -> int:
    settings = _settings(known, rest, _ESTIMATE)
    if known.topology is None:
        raise JaxdiffError(
            "jaxdiff estimate needs --topology: a chip and a shape",
            fix="for instance --topology v5p:4x4x4, or --topology h100:8",
        )
    _quiet()
    import jax
    from rich.console import Console

    from jaxdiff import estimate

    # Nothing is run, so that a device that is here stays free.
    jax.config.update("jax_platforms", "cpu")
    found = estimate.estimate(settings, estimate.parse(known.topology), width=known.width)
    print(estimate.title(found))
    shown, console = estimate.table(found), Console()
    # Numbers that are cut off are worse than lines that are.
    wide = console.options.update(max_width=10_000)
    console.width = max(console.width, console.measure(shown, options=wide).maximum)
    console.print(shown)
    for line in estimate.advice(found):
        print(line)
    if known.json:
        known.json.write_text(json.dumps(found.to_json(), indent=1) + "\n")
    return 0


def _bench(known: argparse.Namespace, rest: list[str]) -> int:
    known.command = "bench feed [STORE] --config"
    settings = _settings(known, rest, _FEED)
    _quiet()
    from jaxdiff import pipeline

    found = pipeline.bench_feed(settings, known.store, seconds=known.seconds)
    if known.json:
        known.json.write_text(json.dumps(found.to_json(), indent=1) + "\n")
    return 0


def _with_null_pair(settings: RunConfig, words: list[str]) -> RunConfig:
    """Drops the null pair, or adds one (of the base with itself) that words can change."""
    if _NO_NULL in words:
        return settings.model_copy(update={"null_pair": None})
    asked = any(word.replace("_", "-").startswith("--null-pair.") for word in words)
    if asked and settings.null_pair is None:
        same = settings.models.model_copy(update={"ft": settings.models.base})
        return settings.model_copy(update={"null_pair": same})
    return settings


def _organism(known: argparse.Namespace, rest: list[str]) -> int:
    _refuse(known, rest)
    _quiet()
    from jaxdiff import organisms

    organisms.check(known.name)
    folder = known.out or Path("runs") / known.name
    make = organisms.write_corpora if known.corpora_only else organisms.build
    make(known.name, folder)
    print(folder)
    return 0


def _dictionary(known: argparse.Namespace, rest: list[str]) -> int:
    _refuse(known, rest)
    from jaxdiff import dictionaries

    if known.action == "formats":
        for name, format in dictionaries.FORMATS.items():
            print(f"{name:22} {format.about}")
        return 0
    if known.action == "export":
        d = dictionaries.load(known.source)
        normalization = dictionaries.load_normalization(known.source)
        dictionaries.export_dictionary(d, known.out, known.format, normalization)
        print(known.out)
        return 0
    if (known.out / "dictionary.json").exists():
        raise JaxdiffError("this folder has a dictionary", where=known.out, fix="choose another")
    d, normalization = dictionaries.import_dictionary(known.source, known.format)
    dictionaries.save(d, known.out, normalization=normalization, imported=str(known.source))
    models, width, latents = d.W_enc.shape
    size = f"{latents} latents, {models} x {width}"
    print(f"{known.out}: {d.activation}, {size}, code norm {d.code_norm}")
    return 0


def _presets(known: argparse.Namespace, rest: list[str]) -> int:
    _refuse(known, rest)
    for name, path in config.presets().items():
        print(f"{name:20} {path.read_text().splitlines()[0].lstrip('# ')}")
    return 0


def _models(known: argparse.Namespace, rest: list[str]) -> int:
    _refuse(known, rest)
    from jaxdiff.models.registry import ARCHITECTURES, HOW_TO_ADD

    for name, family in ARCHITECTURES.items():
        print(f"{name:12} {family.hf_class:31} {family.about}")
    print(HOW_TO_ADD)
    return 0


def _sites(known: argparse.Namespace, rest: list[str]) -> int:
    _refuse(known, rest)
    _quiet()
    from jaxdiff import models

    spec = models.load_spec(known.model)
    shapes = models.sites(spec)
    names = shapes if known.pattern is None else models.match(spec, known.pattern)
    width = max(map(len, names))
    for name in names:
        print(f"{name:{width}}  [{', '.join(map(str, shapes[name]))}]")
    return 0


def _refuse(known: argparse.Namespace, rest: list[str]) -> None:
    if rest:
        raise JaxdiffError(
            f"unknown words {' '.join(rest)}", fix=f"see jaxdiff {known.command} --help"
        )


def _quiet() -> None:
    """Leaves other libraries' notices out of what a person reads."""
    # Orbax logs the traceback of an error that it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(transformers|orbax|grain|flax)\b.*")


# All others are stages of a run.
_COMMANDS = {
    "bench": _bench,
    "dictionary": _dictionary,
    "estimate": _estimate,
    "models": _models,
    "organism": _organism,
    "presets": _presets,
    "sites": _sites,
}


if __name__ == "__main__":
    sys.exit(main())
