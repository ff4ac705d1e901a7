"""What a figure depends on besides the code: machine, load, threads, versions."""

import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterable

CORES = 2


def settle(folder: str) -> None:
    """Gives this process and those that it starts the same two cores, and quiet torch threads.

    Threads of torch's OpenMP wait by spinning; beside another process they would take its core.

    Args:
        folder: Empty folder for what torch compiles.
    """
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # A first call that finds its program on disk is no first call.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def describe(packages: Iterable[str]) -> dict[str, object]:
    """Returns what is to be stated beside the figures."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": CORES,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "torch_threads": CORES,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "python": platform.python_version(),
        "versions": _versions(packages),
    }


def reset_peak() -> None:
    """Sets the peak of this process's resident memory to what it has now, where Linux lets it."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak() -> float | None:
    """Returns the peak of resident memory since `reset_peak` [MiB], weights included."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(
            command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _versions(packages: Iterable[str]) -> dict[str, str]:
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
